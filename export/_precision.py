"""The networks in a lower precision, and what it costs: held against the limit in the model's own units."""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from export._errors import ExportError, GraphError, PrecisionError
from runtime import (
    MANIFEST_FILE,
    MODEL_PROPERTY,
    FileEntry,
    GraphName,
    Manifest,
    ModelSpec,
    Precision,
    PrecisionSpec,
    ReducedPrecision,
    load,
)

LIMITS_NATS: dict[ReducedPrecision, float] = {"fp16": 0.05, "int8": 0.5}
"""By how much the mean ELBO may be lower than in float32, nats a row, if nothing else is asked for."""

_NETWORKS: tuple[GraphName, ...] = ("encoder", "decoder", "reconstruct")
_SMALL = 64  # weights with fewer values stay as they are
_PARTICLES = 10


def add_precisions(
    folder: Path, manifest: Manifest, limits: Mapping[ReducedPrecision, float], x: Tensor, y: Tensor | None
) -> Manifest:
    """Write a bundle's networks in lower precisions, measure what each loses, and return the manifest with them.

    Args:
        folder: The bundle, whole and verified in float32.
        manifest: Its manifest.
        limits: Which precisions, and what each may lose, nats a row.
        x: Observations to measure with, shape `(num_samples, *data_shape)`.
        y: Their labels, for a conditional model.

    Raises:
        ExportError: The bundle holds a part of the model only, which has no ELBO.
        GraphError: A graph has nothing that could be computed in integers.
        PrecisionError: A precision loses more than its limit.
    """
    if not limits:
        return manifest
    if "elbo" not in manifest.graphs:
        raise ExportError(
            f"what {' and '.join(limits)} loses is measured by the ELBO, which needs the ONNX graphs of the whole "
            "model; export with --format onnx and --graphs all"
        )
    expected = _mean_elbo(folder, "fp32", x, y)
    for precision, limit in limits.items():
        files: dict[GraphName, FileEntry] = {}
        for name in _NETWORKS:
            model = onnx.load(folder / manifest.graphs[name].file.file)
            reduced = reduce_precision(model, precision, manifest.model)
            content = reduced.SerializeToString(deterministic=True)
            files[name] = FileEntry.of(f"{name}.{precision}.onnx", content)
            (folder / files[name].file).write_bytes(content)
        draft = PrecisionSpec(graphs=files, elbo_lost_nats=0.0, limit_nats=limit)
        manifest = _with(folder, manifest, precision, draft)
        lost = expected - _mean_elbo(folder, precision, x, y)
        if not lost <= limit:
            raise PrecisionError(precision, lost, limit)
        manifest = _with(folder, manifest, precision, msgspec.structs.replace(draft, elbo_lost_nats=lost))
    return manifest


def reduce_precision(model: onnx.ModelProto, precision: ReducedPrecision, spec: ModelSpec) -> onnx.ModelProto:
    """Return a graph in a lower precision; its inputs and outputs stay float32.

    `fp16` holds the weights in half precision, which ONNX Runtime widens when it loads them: half the size, at the
    speed of float32. `int8` computes the large products in integers, with a scale a column of the weights and one a run
    for what is multiplied with them (ONNX Runtime's dynamic quantization). Weights take seven of the eight bits: x86
    processors without VNNI add pairs of products in 16 bits, which larger weights would overflow without a word.
    Products from and to the latent stay as they are: they are small, and most of what int8 loses would be lost there.
    So do convolutions: with calibrated scales they took as long as in float32 where we measured, and weigh little.

    Args:
        model: The graph in float32.
        precision: Which one.
        spec: The model's choices and sizes.

    Raises:
        GraphError: There is nothing that could be computed in integers.
    """
    reduced = _with_half_weights(model) if precision == "fp16" else _with_integer_products(model, spec)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(reduced, {MODEL_PROPERTY: properties[MODEL_PROPERTY]})
    reduced.producer_name, reduced.producer_version = model.producer_name, model.producer_version
    onnx.checker.check_model(reduced, full_check=True)
    return reduced


def _with_half_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    model = copy.deepcopy(model)
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type == TensorProto.FLOAT and np.prod(weight.dims) >= _SMALL:
            name = weight.name
            half = numpy_helper.to_array(weight).astype(np.float16)
            weight.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
            casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *nodes])
    return model


def _with_integer_products(model: onnx.ModelProto, spec: ModelSpec) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantType, quantize_dynamic  # slow to import, and needed here only

    model = copy.deepcopy(model)
    del model.graph.value_info[:]  # the quantizer transposes weights, and would trip over their former shapes
    shapes = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
    # The sides of weights that come from the latent, alone or with labels, and of two heads in one product.
    of_latent = {side for size in spec.z_dims for side in (size, 2 * size, size + spec.num_classes)}
    excluded, taken = [], 0
    for index, node in enumerate(model.graph.node):
        node.name = f"node{index}"
        if node.op_type == "Gemm" and of_latent.intersection(shapes.get(node.input[1], of_latent)):
            excluded += [node.name, f"{node.name}_MatMul"]  # the quantizer's own name for it
        taken += node.op_type in {"Gemm", "MatMul"} and node.name not in excluded
    if taken == 0:
        raise GraphError(f"int8 has nothing to do in {model.graph.name}: its only products are those of the latent")
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it advises a preparation that our graphs do not need
    try:
        with tempfile.TemporaryDirectory() as folder:
            quantize_dynamic(
                model,
                Path(folder) / "int8.onnx",
                op_types_to_quantize=["Gemm", "MatMul"],
                weight_type=QuantType.QInt8,
                reduce_range=True,
                per_channel=True,
                nodes_to_exclude=excluded,
            )
            return onnx.load(Path(folder) / "int8.onnx")
    finally:
        logger.setLevel(level)


def _with(folder: Path, manifest: Manifest, precision: ReducedPrecision, spec: PrecisionSpec) -> Manifest:
    """Return the manifest with a precision, and write it."""
    manifest = msgspec.structs.replace(manifest, precisions={**manifest.precisions, precision: spec})
    (folder / MANIFEST_FILE).write_bytes(manifest.encode())
    return manifest


def _mean_elbo(folder: Path, precision: Precision, x: Tensor, y: Tensor | None) -> float:
    """Return the mean ELBO of observations, with the same noise for every precision."""
    labels = None if y is None else y.numpy()
    with load(folder, provider="cpu", precision=precision) as model:
        preprocessing = model.manifest.preprocessing
        given = x.numpy() if preprocessing is None else preprocessing.raw(x.numpy())
        return float(model.elbo(given, seed=0, num_particles=_PARTICLES, y=labels).mean())
