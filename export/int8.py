"""Graphs that compute their products and their convolutions in integers, by ONNX Runtime's quantization."""

from __future__ import annotations

import contextlib
import copy
import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxscript import ir

from .errors import GraphError
from .rewrites import OF_TRANSPOSED, rewrite_for_integers
from .rounding import round_weights

if TYPE_CHECKING:
    from edgevae import ModelSpec, Reference

_PRODUCTS, _CONVOLUTIONS = ("Gemm", "MatMul"), ("Conv",)
_FEWEST_CHANNELS = 8  # below, ONNX Runtime's integer convolutions take longer than those in float32


def to_int8(model: onnx.ModelProto, spec: ModelSpec, calibration: Reference | None) -> onnx.ModelProto:
    """Return a graph that computes its products, and calibrated convolutions, in integers.

    A product's scale is a run's: what is multiplied with the weights is looked at each time (dynamic quantization). A
    convolution's is fixed by what it saw in the calibration (static quantization), as ONNX Runtime has no other.
    Weights have a scale a column or channel, and take seven of the eight bits: x86 processors without VNNI add pairs of
    products in 16 bits, which larger weights would overflow without a word.

    With a calibration a product's weights are rounded for what they make of it: of MNIST's ELBO this loses 0.11 to 0.26
    nats where the nearest integers lose 0.36 to 0.69.

    Products from and to the latent stay as they are in a graph with convolutions, where they are a hundredth of the
    work and would lose 0.1 nats more, and without a calibration, where they would lose 0.1 to 0.2 more.

    Convolutions that read few channels, as an encoder's first, stay as they are, as they would take up to five times as
    long, and so do transposed ones: ONNX Runtime has no integer kernel for these. As integers the convolutions that
    most of them are rewritten as lose 0.3 to 1 nat of MNIST's ELBO, and take longer with two threads, by the transposes
    between them.

    Args:
        model: The graph in float32.
        spec: The model's choices and sizes.
        calibration: The graph's inputs for training data; `None` leaves the convolutions and the latent's products as
            they are, and rounds each weight to the nearest integer.

    Raises:
        GraphError: There is nothing that could be computed in integers.
    """
    model = ir.to_proto(rewrite_for_integers(ir.from_proto(model)))
    del model.graph.value_info[:]  # the quantizers would trip over former shapes
    for index, node in enumerate(model.graph.node):
        node.name = f"node{index}"
    convolutional = any(node.op_type in ("Conv", "ConvTranspose") for node in model.graph.node)
    products = _products(model, spec, of_latent=not convolutional and calibration is not None)
    convolutions = set() if calibration is None else _wide_convolutions(model)
    if not products and not convolutions:
        raise GraphError(
            f"int8 has nothing to do in {model.graph.name}: it has no products of rows and weights but those of the "
            f"latent that stay, and no convolutions of {_FEWEST_CHANNELS} channels and more to calibrate; leave "
            "--precision int8 out"
        )
    _give_columns(model, products)
    inputs = {} if calibration is None else {entry.name: calibration[entry.name] for entry in model.graph.input}
    quantized = copy.deepcopy(model)  # the quantizers change what they are given
    if convolutions:
        quantized = _with_integer_convolutions(quantized, convolutions, inputs)
    if products:
        quantized = _with_integer_products(quantized, products)
    if calibration is not None:
        round_weights(quantized, model, products, inputs)
    return quantized


def _products(model: onnx.ModelProto, spec: ModelSpec, *, of_latent: bool) -> set[str]:
    """Return the names of the products of rows with weights, those from and to the latent among them or not."""
    sides = {weight.name: set(weight.dims) for weight in model.graph.initializer if len(weight.dims) == 2}
    # The sides of weights that come from the latent, alone or with labels, and of two heads in one product.
    latent = {side for size in spec.z_dims for side in (size, 2 * size, size + spec.num_classes)}
    plain = {node.name for node in model.graph.node if _plain(node)}
    return {
        name
        for name, weight in _of_types(model, _PRODUCTS).items()
        if name in plain and weight in sides and (of_latent or not latent & sides[weight])
    }


def _plain(product: onnx.NodeProto) -> bool:
    """Return whether a product is of rows as they are, without factors: the quantizer passes over any other."""
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in product.attribute}
    return given.get("alpha", 1) == given.get("beta", 1) == 1 and not given.get("transA")


def _give_columns(model: onnx.ModelProto, names: Collection[str]) -> None:
    """Give these products weights with a column an output, under names that none of the quantizer's can be like.

    The quantizer would transpose weights in place, whoever else reads them, and what is called `weight_scale` is its.
    """
    weights = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    for product in model.graph.node:
        if product.name in names:
            transposed = [attribute for attribute in product.attribute if attribute.name == "transB" and attribute.i]
            for attribute in transposed:
                attribute.i = 0
            columns = weights[product.input[1]].T if transposed else weights[product.input[1]]
            name = f"{product.input[1]}:{'T' if transposed else 'N'}"
            if name not in weights:
                model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(columns), name))
                weights[name] = columns
            product.input[1] = name
    # ONNX Runtime warns of weights that nothing reads.
    read = {value for node in model.graph.node for value in node.input} | {entry.name for entry in model.graph.output}
    kept = [entry for entry in model.graph.initializer if entry.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


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


def _with_integer_products(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantType, quantize_dynamic  # slow to import, and needed here only

    others = [node.name for node in model.graph.node if node.op_type in _PRODUCTS and node.name not in names]
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


def _with_integer_convolutions(
    model: onnx.ModelProto, names: Collection[str], inputs: Mapping[str, NDArray[Any]]
) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static  # likewise

    with _quiet(), tempfile.TemporaryDirectory() as folder:
        quantize_static(
            model,
            Path(folder) / "int8.onnx",
            _Once(inputs),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=[*names, *_relus_behind(model, names)],
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,
            per_channel=True,
        )
        return onnx.load(Path(folder) / "int8.onnx")


class _Once:
    """A graph's inputs for training data, once, as the quantizer asks for them."""

    def __init__(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        self._batches = iter([dict(inputs)])

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
