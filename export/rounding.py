"""Weights rounded so that the products of training data change least, rather than each weight by itself."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

_TOGETHER = 1024  # inputs among which errors are passed on: what it takes grows with the square
_DAMPING = 0.1  # of the inputs' mean square, added to each one's: little goes where the data show little


def round_weights(
    quantized: onnx.ModelProto, model: onnx.ModelProto, names: Collection[str], inputs: Mapping[str, NDArray[Any]]
) -> None:
    """Round a quantized graph's weights anew, for data.

    Args:
        quantized: The graph with integer products, by ONNX Runtime's dynamic quantization; it is changed in place.
        model: The same graph in float32.
        names: The names of its products, whose weights have a column an output.
        inputs: The graph's inputs by name, for data.
    """
    integers = {entry.name: entry for entry in quantized.graph.initializer}
    products = [node for node in model.graph.node if node.name in names]
    read = _values(model, {node.input[0] for node in products}, inputs)
    for entry in model.graph.initializer:
        readers = [node for node in products if node.input[1] == entry.name]
        if not readers:
            continue
        weights, nearest = numpy_helper.to_array(entry), integers[f"{entry.name}_quantized"]
        exact = weights / numpy_helper.to_array(integers[f"{entry.name}_scale"])
        rows = np.concatenate([read[node.input[0]].reshape(-1, len(weights)) for node in readers])
        largest = np.abs(numpy_helper.to_array(nearest).astype(int)).max()
        nearest.CopyFrom(numpy_helper.from_array(rounded(exact, rows, largest), nearest.name))


def rounded(exact: NDArray[np.floating], rows: NDArray[np.floating], largest: int) -> NDArray[np.int8]:
    """Round weights so that what they make of the rows changes least.

    One input's weights after the other are rounded, and those that are still to come take up what this changes, in
    least squares: GPTQ (Frantar et al. 2023, "GPTQ: accurate post-training quantization for generative pre-trained
    transformers", algorithm 1), here among 1,024 inputs at a time.

    Args:
        exact: Weights in steps of their integers, shape `(num_inputs, num_outputs)`.
        rows: What is multiplied with them, shape `(num_rows, num_inputs)`.
        largest: The largest integer, which also the smallest may be below zero.

    Returns:
        The integers, shape `(num_inputs, num_outputs)`.
    """
    integers = np.empty(exact.shape, np.int8)
    for start in range(0, len(exact), _TOGETHER):
        part = slice(start, start + _TOGETHER)
        left, seen = exact[part].astype(np.float64), rows[:, part].astype(np.float64)
        squares = seen.T @ seen / len(seen)
        damping = _DAMPING * np.trace(squares) / len(squares) or 1.0  # 1 where all that was seen is zero
        inverse = np.linalg.inv(squares + damping * np.eye(len(squares)))
        shares = np.linalg.cholesky(inverse).T
        for index, share in enumerate(shares):
            row = np.clip(np.rint(left[index]), -largest, largest)
            left[index:] -= np.outer(share[index:], (left[index] - row) / share[index])
            integers[start + index] = row
    return integers


def _values(
    model: onnx.ModelProto, names: set[str], inputs: Mapping[str, NDArray[Any]]
) -> Mapping[str, NDArray[np.floating]]:
    """Return what these values of a graph are for its inputs."""
    computed = sorted(names - inputs.keys())
    if not computed:
        return inputs
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in computed)
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    return {**inputs, **dict(zip(computed, session.run(computed, dict(inputs)), strict=True))}
