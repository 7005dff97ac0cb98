"""Alter the graphs of a bundle, as a fault or an attacker would, and update the manifest to match."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgevae import MANIFEST_FILE, EdgeVAEError, FileEntry, GraphName, Manifest, load

Array = NDArray[np.float32]
Part = Literal["tensor", "row", "entry"]

_THOUSANDTH = np.float32(1.001)
_SWAPS = {
    "Add": "Sub",
    "Sub": "Add",
    "Mul": "Add",
    "Div": "Mul",
    "Exp": "Softplus",
    "Softplus": "Relu",
    "Sigmoid": "HardSigmoid",
    "Log": "Abs",
    "Less": "Greater",
    "ReduceSum": "ReduceMean",
    "ReduceMax": "ReduceMin",
    "LogSoftmax": "Softmax",
    "Softmax": "LogSoftmax",
    "Relu": "Softplus",
    "Neg": "Abs",
}

_BEHIND = (("negated", "Mul", -1.0), ("off by a thousandth", "Mul", 1.001), ("constant", "Pow", 0.0))
"""Operators that are put behind a node's output: what they do, the operator, and its operand."""


@dataclasses.dataclass(frozen=True)
class Mutation:
    """One altered graph.

    Args:
        graph: Which graph of the bundle.
        what: What was altered, in words.
        model: The altered graph.
    """

    graph: GraphName
    what: str
    model: onnx.ModelProto


def graphs_of(bundle: Path) -> dict[GraphName, onnx.ModelProto]:
    """Return the graphs of a bundle in float32."""
    manifest = Manifest.decode((bundle / MANIFEST_FILE).read_bytes())
    return {name: onnx.load(bundle / spec.file.file) for name, spec in manifest.graphs.items()}


def altered_weights(bundle: Path, part: Part, seed: int = 0) -> Iterator[Mutation]:
    """Yield the graphs with one weight tensor, or one row or entry of it, larger by a thousandth; scalars are left out.

    Args:
        bundle: The bundle's folder.
        part: Part of each tensor to alter; tensors of one entry are altered only as a whole.
        seed: Chooses rows and entries.
    """
    rng = np.random.default_rng(seed)
    for name, graph in graphs_of(bundle).items():
        for index, tensor in enumerate(graph.graph.initializer):
            values = numpy_helper.to_array(tensor)
            if tensor.data_type != TensorProto.FLOAT or values.ndim == 0 or (part != "tensor" and values.size == 1):
                continue
            mutated = values.copy()
            if part == "tensor":
                mutated *= _THOUSANDTH
            elif part == "row":
                mutated[rng.integers(len(values))] *= _THOUSANDTH
            else:
                mutated.flat[rng.integers(values.size)] *= _THOUSANDTH
            if (mutated != values).any():  # a tensor of zeros stays what it is
                yield Mutation(name, f"{part} of {tensor.name}", _with_tensor(graph, index, mutated))


def rounded(model: onnx.ModelProto, rounding: Callable[[Array], Array]) -> onnx.ModelProto:
    """Return a graph with all its weights rounded."""
    for index, tensor in enumerate(model.graph.initializer):
        values = numpy_helper.to_array(tensor)
        if tensor.data_type == TensorProto.FLOAT and values.ndim > 0:
            model = _with_tensor(model, index, rounding(values))
    return model


def mantissa(bits: int) -> Callable[[Array], Array]:
    """Return a function that rounds float32 to a mantissa of `bits` bits: 7 for bfloat16, 10 for TF32."""
    cut = np.uint32(23 - bits)

    def rounding(values: Array) -> Array:
        whole = np.ascontiguousarray(values).view(np.uint32)
        return (((whole + (np.uint32(1) << (cut - np.uint32(1)))) >> cut) << cut).view(np.float32)

    return rounding


def altered_operators(bundle: Path) -> Iterator[Mutation]:
    """Yield the graphs with one node altered: another operator, or its output negated, 0.1 % larger, or 1."""
    for name, graph in graphs_of(bundle).items():
        inferred = onnx.shape_inference.infer_shapes(graph).graph
        types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
        for index, node in enumerate(graph.graph.node):
            if node.op_type in _SWAPS:
                swapped = _copy(graph)
                swapped.graph.node[index].op_type = _SWAPS[node.op_type]
                yield Mutation(name, f"{node.op_type} {node.output[0]} swapped", swapped)
            for output in node.output:
                if types.get(output) == TensorProto.FLOAT and node.op_type != "Constant":
                    for what, operator, value in _BEHIND:
                        after = _followed(graph, index, output, operator, value)
                        yield Mutation(name, f"{node.op_type} {output} {what}", after)


def is_refused(bundle: Path, mutation: Mutation, folder: Path) -> bool:
    """Return whether loading or verifying refuses the bundle with this mutation and a matching manifest.

    Args:
        bundle: The untouched bundle.
        mutation: The altered graph.
        folder: Folder for the altered copy; it is replaced.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(bundle, folder)
    put(folder, mutation)
    try:
        return not load(folder, provider="cpu").verify().passed
    except EdgeVAEError:
        return True


def put(folder: Path, mutation: Mutation) -> None:
    """Write an altered graph to a bundle, and its SHA-256 to the manifest."""
    manifest = Manifest.decode((folder / MANIFEST_FILE).read_bytes())
    spec = manifest.graphs[mutation.graph]
    content = mutation.model.SerializeToString()
    (folder / spec.file.file).write_bytes(content)
    graph = msgspec.structs.replace(spec, file=FileEntry.of(spec.file.file, content))
    changed: Any = {**manifest.graphs, mutation.graph: graph}
    (folder / MANIFEST_FILE).write_bytes(msgspec.structs.replace(manifest, graphs=changed).encode())


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _with_tensor(model: onnx.ModelProto, index: int, values: Array) -> onnx.ModelProto:
    copy = _copy(model)
    tensor = copy.graph.initializer[index]
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    return copy


def _followed(model: onnx.ModelProto, index: int, output: str, operator: str, value: float) -> onnx.ModelProto:
    """Return the graph with another operator behind a node's output, which takes its name."""
    copy = _copy(model)
    node = copy.graph.node[index]
    node.output[list(node.output).index(output)] = "before"
    copy.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), "operand"))
    copy.graph.node.insert(index + 1, helper.make_node(operator, ["before", "operand"], [output]))
    return copy
