"""The networks in fp16 and int8, and how much of the ELBO each costs."""

from __future__ import annotations

import contextlib
import copy
import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxscript import ir

from edgevae import (
    MANIFEST_FILE,
    MODEL_PROPERTY,
    FileEntry,
    GraphName,
    Manifest,
    ModelSpec,
    Precision,
    PrecisionSpec,
    ReducedPrecision,
    Reference,
)

from .errors import ExportError, NothingToQuantizeError, PrecisionError
from .rewrites import FROM_TRANSPOSED, rewrite_for_integers

LIMITS_NATS: dict[ReducedPrecision, float] = {"fp16": 0.05, "int8": 0.5}
"""Default limit on the loss of mean ELBO compared with float32, nats a row."""

_NETWORKS: tuple[GraphName, ...] = ("encoder", "decoder", "reconstruct")
_MIN_FP16_WEIGHTS = 64  # smaller tensors stay in float32
_MIN_INT8_CHANNELS = 8  # ONNX Runtime's integer convolutions of fewer channels are slower than those in float32
_GPTQ_BLOCK = 1024  # inputs rounded together; the cost grows with the square
_GPTQ_DAMPING = 0.1  # share of the mean of the Hessian's diagonal that is added to it
_PRODUCTS, _CONVOLUTIONS = ("Gemm", "MatMul"), ("Conv",)


class Measurable(Protocol):
    """What is exported, as far as lower precisions need it."""

    def calibration(self) -> Reference | None:
        """Return inputs of all graphs for training data; `None` where there are none."""

    def elbos(self, folder: Path, precision: Precision) -> NDArray[np.float64]:
        """Return the ELBO of each sample, in nats, of a bundle in a precision, with the same noise for all."""


def add_precisions(
    folder: Path, manifest: Manifest, limits: Mapping[ReducedPrecision, float], source: Measurable
) -> Manifest:
    """Write a bundle's networks in lower precisions, measure what each loses, and return the new manifest.

    Args:
        folder: The bundle, complete and verified in float32.
        manifest: Its manifest.
        limits: The precisions, and how much mean ELBO each may lose, nats a row.
        source: The model. The loss is measured on its samples; its training samples calibrate int8.

    Raises:
        ExportError: The bundle holds only a part of the model, which has no ELBO.
        NothingToQuantizeError: int8 has nothing to quantize in any graph; single graphs stay in float32.
        PrecisionError: A precision loses more than its limit.
    """
    if not limits:
        return manifest
    if "elbo" not in manifest.graphs:
        raise ExportError(
            f"the loss of {' and '.join(limits)} is measured by the ELBO, which needs the ONNX graphs of the whole "
            "model; export with --format onnx and --graphs all"
        )
    calibration = source.calibration() if "int8" in limits else None
    expected = source.elbos(folder, "fp32")
    finite = np.isfinite(expected)  # not of outliers that overflow float32
    for precision, limit in limits.items():
        files: dict[GraphName, FileEntry] = {}
        nothing: NothingToQuantizeError | None = None
        for name in (each for each in _NETWORKS if each in manifest.graphs):
            model = onnx.load(folder / manifest.graphs[name].file.file)
            try:
                reduced = reduce_precision(model, precision, manifest.model, calibration)
            except NothingToQuantizeError as error:
                nothing = error
                continue
            content = reduced.SerializeToString(deterministic=True)
            files[name] = FileEntry.of(f"{name}.{precision}.onnx", content)
            (folder / files[name].file).write_bytes(content)
        if nothing is not None and not files:
            raise nothing
        draft = PrecisionSpec(graphs=files, elbo_lost_nats=0.0, limit_nats=limit)
        manifest = _with_precision(folder, manifest, precision, draft)
        lost = float((expected[finite] - source.elbos(folder, precision)[finite]).mean())
        if not lost <= limit:
            raise PrecisionError(precision, lost, limit)
        manifest = _with_precision(folder, manifest, precision, msgspec.structs.replace(draft, elbo_lost_nats=lost))
    return manifest


def left_in_float32(spec: PrecisionSpec) -> list[GraphName]:
    """Return the networks that a precision leaves in float32, because there is nothing to quantize in them."""
    return [name for name in _NETWORKS if name not in spec.graphs]


def _with_precision(folder: Path, manifest: Manifest, precision: ReducedPrecision, spec: PrecisionSpec) -> Manifest:
    """Return the manifest with a precision, and write it."""
    manifest = msgspec.structs.replace(manifest, precisions={**manifest.precisions, precision: spec})
    (folder / MANIFEST_FILE).write_bytes(manifest.encode())
    return manifest


def reduce_precision(
    model: onnx.ModelProto, precision: ReducedPrecision, spec: ModelSpec, calibration: Reference | None = None
) -> onnx.ModelProto:
    """Return a graph in a lower precision; its inputs and outputs stay float32.

    Args:
        model: The graph in float32.
        precision: `fp16` stores the weights in half precision, which ONNX Runtime widens when it loads them: half the
            size at the speed of float32. `int8` computes products, and calibrated convolutions, in integers.
        spec: The model's choices and sizes.
        calibration: The graph's inputs for training data, for `int8`.

    Raises:
        NothingToQuantizeError: int8 has nothing to quantize.
    """
    reduced = _with_half_weights(model) if precision == "fp16" else to_int8(model, spec, calibration)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(reduced, {MODEL_PROPERTY: properties[MODEL_PROPERTY]})
    reduced.producer_name, reduced.producer_version = model.producer_name, model.producer_version
    onnx.checker.check_model(reduced, full_check=True)
    return reduced


# fp16


def _with_half_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    model = copy.deepcopy(model)
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type == TensorProto.FLOAT and np.prod(weight.dims) >= _MIN_FP16_WEIGHTS:
            name = weight.name
            half = numpy_helper.to_array(weight).astype(np.float16)
            weight.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
            casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *nodes])
    return model


# int8


def to_int8(model: onnx.ModelProto, spec: ModelSpec, calibration: Reference | None) -> onnx.ModelProto:
    """Return a graph that computes its products, and calibrated convolutions, in int8.

    Products are quantized dynamically: each run finds the scale of its inputs. Convolutions are quantized statically,
    with scales from the calibration, as ONNX Runtime has no other kind. Weights have a scale for each output column or
    channel and use 7 of 8 bits: x86 processors without VNNI add pairs of products in 16 bits, which would overflow.
    With a calibration, the weights of products are rounded by `gptq_round`.

    These stay in float32, because they would lose more of the ELBO or time than they gain:

    - products from and to the latent, in a graph with convolutions or without a calibration;
    - convolutions of fewer than 8 channels, like an encoder's first;
    - transposed convolutions, for which ONNX Runtime has no integer kernel, and the convolutions that replace them.

    Args:
        model: The graph in float32.
        spec: The model's choices and sizes.
        calibration: The graph's inputs for training data; without it convolutions stay in float32, and weights are
            rounded to the nearest integer.

    Raises:
        NothingToQuantizeError: There is nothing to quantize.
    """
    model = ir.to_proto(rewrite_for_integers(ir.from_proto(model)))
    del model.graph.value_info[:]  # the rewrites have made these shapes stale
    for index, node in enumerate(model.graph.node):
        node.name = f"node{index}"
    convolutional = any(node.op_type in ("Conv", "ConvTranspose") for node in model.graph.node)
    products = _products(model, spec, with_latent=not convolutional and calibration is not None)
    convolutions = set() if calibration is None else _wide_convolutions(model)
    if not products and not convolutions:
        raise NothingToQuantizeError(
            f"int8 has nothing to quantize in {model.graph.name}: it has no products with constant weights, except "
            "those of the latent that stay in float32, and no convolutions of at least "
            f"{_MIN_INT8_CHANNELS} channels that training data could calibrate; leave out --precision int8"
        )
    _give_columns(model, products)
    inputs = {} if calibration is None else {entry.name: calibration[entry.name] for entry in model.graph.input}
    quantized = copy.deepcopy(model)  # the quantizers change their argument
    if convolutions:
        quantized = _with_integer_convolutions(quantized, convolutions, inputs)
    if products:
        quantized = _with_integer_products(quantized, products)
    if calibration is not None:
        _round_weights(quantized, model, products, inputs)
    return quantized


def _products(model: onnx.ModelProto, spec: ModelSpec, *, with_latent: bool) -> set[str]:
    """Return the names of the products with constant weights, including those from and to the latent or not."""
    sides = {weight.name: set(weight.dims) for weight in model.graph.initializer if len(weight.dims) == 2}
    # Sides of a weight that belong to the latent: alone, joined by labels, and two heads in one product.
    sizes = spec.z_dims if spec.program is None else spec.program.latent_sizes
    latent = {side for size in sizes for side in (size, 2 * size, size + spec.num_classes)}
    plain = {node.name for node in model.graph.node if _is_plain_product(node)}
    return {
        name
        for name, weight in _weights_by_node(model, _PRODUCTS).items()
        if name in plain and weight in sides and (with_latent or not latent & sides[weight])
    }


def _is_plain_product(node: onnx.NodeProto) -> bool:
    """Return whether a product has no factors and no transposed input: the quantizer supports nothing else."""
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return given.get("alpha", 1) == given.get("beta", 1) == 1 and not given.get("transA")


def _wide_convolutions(model: onnx.ModelProto) -> set[str]:
    """Return the names of the convolutions of enough channels."""
    channels = {weight.name: weight.dims[1] for weight in model.graph.initializer if len(weight.dims) > 1}
    convolutions = _weights_by_node(model, _CONVOLUTIONS)
    return {name for name, weight in convolutions.items() if channels.get(weight, 0) >= _MIN_INT8_CHANNELS}


def _weights_by_node(model: onnx.ModelProto, types: Collection[str]) -> dict[str, str]:
    """Return the nodes of these types and their weights, by name; without those made of transposed convolutions."""
    return {
        node.name: node.input[1]
        for node in model.graph.node
        if node.op_type in types and not node.input[1].startswith(FROM_TRANSPOSED)
    }


def _relus_behind(model: onnx.ModelProto, names: Collection[str]) -> set[str]:
    """Return the names of the Relus that are the only reader of one of these nodes.

    Quantizing the output of the Relu in place of its input saves a rounding and halves the step, as the range starts
    at 0.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    of_each = [readers.get(node.output[0], []) for node in model.graph.node if node.name in names]
    return {nodes[0].name for nodes in of_each if [node.op_type for node in nodes] == ["Relu"]}


def _give_columns(model: onnx.ModelProto, names: Collection[str]) -> None:
    """Give these products weights of their own, shape `(inputs, outputs)`.

    The quantizer would transpose weights in place although others read them. The new names contain a colon, so that
    they cannot collide with the quantizer's own, like `weight_scale`.
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
    # ONNX Runtime warns of unused weights.
    read = {value for node in model.graph.node for value in node.input} | {entry.name for entry in model.graph.output}
    kept = [entry for entry in model.graph.initializer if entry.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _with_integer_products(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantType, quantize_dynamic  # slow to import

    others = [node.name for node in model.graph.node if node.op_type in _PRODUCTS and node.name not in names]
    with _without_quantizer_advice(), tempfile.TemporaryDirectory() as folder:
        quantize_dynamic(
            model,
            Path(folder) / "int8.onnx",
            op_types_to_quantize=list(_PRODUCTS),
            weight_type=QuantType.QInt8,
            reduce_range=True,
            per_channel=True,
            nodes_to_exclude=[*others, *(f"{name}_MatMul" for name in others)],  # the quantizer renames a Gemm
        )
        return onnx.load(Path(folder) / "int8.onnx")


def _with_integer_convolutions(
    model: onnx.ModelProto, names: Collection[str], inputs: Mapping[str, NDArray[Any]]
) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static  # slow to import

    with _without_quantizer_advice(), tempfile.TemporaryDirectory() as folder:
        quantize_static(
            model,
            Path(folder) / "int8.onnx",
            _SingleBatch(inputs),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=[*names, *_relus_behind(model, names)],
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,
            per_channel=True,
        )
        return onnx.load(Path(folder) / "int8.onnx")


class _SingleBatch:
    """The calibration as the quantizer's data reader: one batch."""

    def __init__(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        self._batches = iter([dict(inputs)])

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch of inputs by name, or `None` after the last."""
        return next(self._batches, None)


@contextlib.contextmanager
def _without_quantizer_advice() -> Iterator[None]:
    """Silence ONNX Runtime's advice to pre-process the graph, which our exporter's graphs do not need."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _round_weights(
    quantized: onnx.ModelProto, model: onnx.ModelProto, names: Collection[str], inputs: Mapping[str, NDArray[Any]]
) -> None:
    """Round the weights of a quantized graph again, by `gptq_round`.

    Args:
        quantized: The graph with integer products, by ONNX Runtime's dynamic quantization; changed in place.
        model: The same graph in float32.
        names: Names of its products; their weights have shape `(inputs, outputs)`.
        inputs: The graph's inputs for training data, by name.
    """
    integers = {entry.name: entry for entry in quantized.graph.initializer}
    products = [node for node in model.graph.node if node.name in names]
    read = _intermediate_values(model, {node.input[0] for node in products}, inputs)
    for entry in model.graph.initializer:
        readers = [node for node in products if node.input[1] == entry.name]
        if not readers:
            continue
        weights, nearest = numpy_helper.to_array(entry), integers[f"{entry.name}_quantized"]
        exact = weights / numpy_helper.to_array(integers[f"{entry.name}_scale"])
        rows = np.concatenate([read[node.input[0]].reshape(-1, len(weights)) for node in readers])
        largest = np.abs(numpy_helper.to_array(nearest).astype(int)).max()
        nearest.CopyFrom(numpy_helper.from_array(gptq_round(exact, rows, largest), nearest.name))


def gptq_round(exact: NDArray[np.floating], rows: NDArray[np.floating], largest: int) -> NDArray[np.int8]:
    """Round a product's weights so that its outputs for given inputs change least, in least squares.

    GPTQ (Frantar et al., "GPTQ: accurate post-training quantization for generative pre-trained transformers", 2023,
    algorithm 1): the weights are rounded one input after the other, and those not yet rounded compensate the error.
    Blocks of 1,024 inputs are rounded independently.

    Args:
        exact: Weights divided by their scale, shape `(num_inputs, num_outputs)`.
        rows: Inputs of the product, shape `(num_rows, num_inputs)`.
        largest: Limit on the integers' absolute values.

    Returns:
        The integers, shape `(num_inputs, num_outputs)`.
    """
    integers = np.empty(exact.shape, np.int8)
    for start in range(0, len(exact), _GPTQ_BLOCK):
        block = slice(start, start + _GPTQ_BLOCK)
        left, seen = exact[block].astype(np.float64), rows[:, block].astype(np.float64)
        hessian = seen.T @ seen / len(seen)
        damping = _GPTQ_DAMPING * np.trace(hessian) / len(hessian) or 1.0  # 1 where all inputs are zero
        inverse = np.linalg.inv(hessian + damping * np.eye(len(hessian)))
        factor = np.linalg.cholesky(inverse).T
        for index, shares in enumerate(factor):
            row = np.clip(np.rint(left[index]), -largest, largest)
            left[index:] -= np.outer(shares[index:], (left[index] - row) / shares[index])
            integers[start + index] = row
    return integers


def _intermediate_values(
    model: onnx.ModelProto, names: set[str], inputs: Mapping[str, NDArray[Any]]
) -> Mapping[str, NDArray[np.floating]]:
    """Return these values of a graph, given its inputs."""
    computed = sorted(names - inputs.keys())
    if not computed:
        return inputs
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in computed)
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    return {**inputs, **dict(zip(computed, session.run(computed, dict(inputs)), strict=True))}
