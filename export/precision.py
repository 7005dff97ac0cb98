"""The networks in a lower precision, and what it costs: held against the limit in the model's own units."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

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
    load,
)

from .errors import ExportError, PrecisionError
from .int8 import to_int8
from .reference import make_reference
from .source import Source

LIMITS_NATS: dict[ReducedPrecision, float] = {"fp16": 0.05, "int8": 0.5}
"""By how much the mean ELBO may be lower than in float32, nats a row, if nothing else is asked for."""

_NETWORKS: tuple[GraphName, ...] = ("encoder", "decoder", "reconstruct")
_SMALL = 64  # weights with fewer values stay as they are
_PARTICLES = 10


def add_precisions(
    folder: Path, manifest: Manifest, limits: Mapping[ReducedPrecision, float], source: Source
) -> Manifest:
    """Write a bundle's networks in lower precisions, measure what each loses, and return the manifest with them.

    Args:
        folder: The bundle, whole and verified in float32.
        manifest: Its manifest.
        limits: Which precisions, and what each may lose, nats a row.
        source: The model. Its samples measure what is lost; its training samples calibrate int8.

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
    calibration = None
    if "int8" in limits and source.train_samples is not None:
        calibration = make_reference(source.vae, source.train_samples, source.train_labels)
    expected = _mean_elbo(folder, "fp32", source)
    for precision, limit in limits.items():
        files: dict[GraphName, FileEntry] = {}
        for name in _NETWORKS:
            model = onnx.load(folder / manifest.graphs[name].file.file)
            reduced = reduce_precision(model, precision, manifest.model, calibration)
            content = reduced.SerializeToString(deterministic=True)
            files[name] = FileEntry.of(f"{name}.{precision}.onnx", content)
            (folder / files[name].file).write_bytes(content)
        draft = PrecisionSpec(graphs=files, elbo_lost_nats=0.0, limit_nats=limit)
        manifest = _with(folder, manifest, precision, draft)
        lost = expected - _mean_elbo(folder, precision, source)
        if not lost <= limit:
            raise PrecisionError(precision, lost, limit)
        manifest = _with(folder, manifest, precision, msgspec.structs.replace(draft, elbo_lost_nats=lost))
    return manifest


def reduce_precision(
    model: onnx.ModelProto, precision: ReducedPrecision, spec: ModelSpec, calibration: Reference | None = None
) -> onnx.ModelProto:
    """Return a graph in a lower precision; its inputs and outputs stay float32.

    `fp16` holds the weights in half precision, which ONNX Runtime widens when it loads them: half the size, at the
    speed of float32. `int8` computes the products, and wide convolutions where there is a calibration, in integers.

    Args:
        model: The graph in float32.
        precision: Which one.
        spec: The model's choices and sizes.
        calibration: The graph's inputs for training data, for `int8`.

    Raises:
        GraphError: There is nothing that could be computed in integers.
    """
    reduced = _with_half_weights(model) if precision == "fp16" else to_int8(model, spec, calibration)
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


def _with(folder: Path, manifest: Manifest, precision: ReducedPrecision, spec: PrecisionSpec) -> Manifest:
    """Return the manifest with a precision, and write it."""
    manifest = msgspec.structs.replace(manifest, precisions={**manifest.precisions, precision: spec})
    (folder / MANIFEST_FILE).write_bytes(manifest.encode())
    return manifest


def _mean_elbo(folder: Path, precision: Precision, source: Source) -> float:
    """Return the mean ELBO of the samples, with the same noise for every precision."""
    x, y = source.samples.numpy(), None if source.labels is None else source.labels.numpy()
    with load(folder, provider="cpu", precision=precision) as model:
        preprocessing = model.manifest.preprocessing
        given = x if preprocessing is None else preprocessing.raw(x)
        return float(model.elbo(given, seed=0, num_particles=_PARTICLES, y=y).mean())
