"""Graphs that compute their large products and their convolutions in integers, by ONNX Runtime's quantization."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from onnxscript import ir

from export._errors import GraphError
from export._rewrites import OF_TRANSPOSED, rewrite_for_integers

if TYPE_CHECKING:
    from runtime import ModelSpec, Reference

_PRODUCTS, _CONVOLUTIONS = ("Gemm", "MatMul"), ("Conv",)
_FEWEST_CHANNELS = 8  # below, ONNX Runtime's integer convolutions take longer than those in float32


def to_int8(model: onnx.ModelProto, spec: ModelSpec, calibration: Reference | None) -> onnx.ModelProto:
    """Return a graph that computes its large products, and calibrated convolutions, in integers.

    A product's scale is a run's: what is multiplied with the weights is looked at each time (dynamic quantization). A
    convolution's is fixed by what it saw in the calibration (static quantization), as ONNX Runtime has no other.
    Weights have a scale a column or channel, and take seven of the eight bits: x86 processors without VNNI add pairs of
    products in 16 bits, which larger weights would overflow without a word.

    Products from and to the latent stay as they are: they are small, and most of what int8 loses would be lost there.
    So do convolutions that read few channels, as an encoder's first, which would take up to five times as long, and
    transposed ones: ONNX Runtime has no integer kernel for these. As integers the convolutions that most of them are
    rewritten as lose 0.3 to 1 nat of MNIST's ELBO, and take longer with two threads, by the transposes between them.

    Args:
        model: The graph in float32.
        spec: The model's choices and sizes.
        calibration: The graph's inputs for training data; `None` leaves the convolutions as they are.

    Raises:
        GraphError: There is nothing that could be computed in integers.
    """
    model = ir.to_proto(rewrite_for_integers(ir.from_proto(model)))
    del model.graph.value_info[:]  # the quantizers transpose weights, and would trip over their former shapes
    for index, node in enumerate(model.graph.node):
        node.name = f"node{index}"
    large = _large_products(model, spec)
    convolutions = _wide_convolutions(model)
    if not convolutions:
        calibration = None
    if not large and calibration is None:
        raise GraphError(
            f"int8 has nothing to do in {model.graph.name}: it has no products but those of the latent, "
            f"and no convolutions of {_FEWEST_CHANNELS} channels and more to calibrate; leave --precision int8 out"
        )
    if calibration is not None:
        model = _with_integer_convolutions(model, convolutions, _Rows(model, calibration))
    return _with_integer_products(model, large) if large else model


def _large_products(model: onnx.ModelProto, spec: ModelSpec) -> set[str]:
    """Return the names of the products that are neither from nor to the latent."""
    shapes = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
    # The sides of weights that come from the latent, alone or with labels, and of two heads in one product.
    of_latent = {side for size in spec.z_dims for side in (size, 2 * size, size + spec.num_classes)}
    products = _of_types(model, _PRODUCTS)
    return {name for name, weight in products.items() if not of_latent.intersection(shapes.get(weight, of_latent))}


def _wide_convolutions(model: onnx.ModelProto) -> set[str]:
    """Return the names of the convolutions of which each output reads enough channels."""
    channels = {weight.name: weight.dims[1] for weight in model.graph.initializer if len(weight.dims) > 1}
    convolutions = _of_types(model, _CONVOLUTIONS)
    return {name for name, weight in convolutions.items() if channels.get(weight, 0) >= _FEWEST_CHANNELS}


def _relus_behind(model: onnx.ModelProto, names: Collection[str]) -> set[str]:
    """Return the names of the Relus each of which alone reads what one of these nodes makes.

    The quantizer rounds what such a Relu makes, and not what it reads: once, and from 0 on, in steps half as large.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    of_each = [readers.get(node.output[0], []) for node in model.graph.node if node.name in names]
    return {nodes[0].name for nodes in of_each if [node.op_type for node in nodes] == ["Relu"]}


def _of_types(model: onnx.ModelProto, types: Collection[str]) -> dict[str, str]:
    """Return the nodes of these types by name, and their weights', but none that were transposed convolutions."""
    return {
        node.name: node.input[1]
        for node in model.graph.node
        if node.op_type in types and not node.input[1].startswith(OF_TRANSPOSED)
    }


def _with_integer_products(model: onnx.ModelProto, large: Collection[str]) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantType, quantize_dynamic  # slow to import, and needed here only

    others = [node.name for node in model.graph.node if node.op_type in _PRODUCTS and node.name not in large]
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        quantize_dynamic(
            model,
            Path(folder) / "int8.onnx",
            op_types_to_quantize=list(_PRODUCTS),
            weight_type=QuantType.QInt8,
            reduce_range=True,
            per_channel=True,
            nodes_to_exclude=[*others, *(f"{name}_MatMul" for name in others)],  # the quantizer's name for a Gemm's
        )
        return onnx.load(Path(folder) / "int8.onnx")


def _with_integer_convolutions(model: onnx.ModelProto, names: Collection[str], rows: _Rows) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static  # likewise

    with _quiet(), tempfile.TemporaryDirectory() as folder:
        quantize_static(
            model,
            Path(folder) / "int8.onnx",
            rows,
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=[*names, *_relus_behind(model, names)],
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,
            per_channel=True,
        )
        return onnx.load(Path(folder) / "int8.onnx")


class _Rows:
    """A graph's inputs for training data, once, as the quantizer asks for them."""

    def __init__(self, model: onnx.ModelProto, calibration: Reference) -> None:
        self._batches = iter([{entry.name: calibration[entry.name] for entry in model.graph.input}])

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch of inputs by name, or `None` after the last."""
        return next(self._batches, None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep ONNX Runtime's quantization from advising a preparation that our graphs do not need."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
