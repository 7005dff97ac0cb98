"""A traced program as an ONNX graph."""

from __future__ import annotations

import contextlib
import io

import onnx
import torch
from onnxscript import ir
from torch.export import ExportedProgram

from edgevae import MODEL_PROPERTY, ModelSpec

from .errors import GraphError
from .lint import lint_onnx
from .programs import Program
from .rewrites import rewrite_graph

DEFAULT_OPSET = 20


def to_onnx(
    name: str, program: Program, traced: ExportedProgram, opset: int, spec: ModelSpec, *, optimize: bool = True
) -> onnx.ModelProto:
    """Return the ONNX graph of a traced program: checked, linted, and free of traces of this machine.

    Args:
        name: What the graph is called.
        program: Names its inputs and outputs.
        traced: The program, traced.
        opset: Version of ONNX's operators.
        spec: The model's choices, which the graph carries, so that a manifest cannot contradict them unseen.
        optimize: Whether to rewrite the graph for speed; what keeps its numbers right is rewritten in any case.

    Raises:
        GraphError: The program cannot be expressed in this opset, or the graph is refused by the lint.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the exporter prints its progress
            exported = torch.onnx.export(
                traced,
                dynamo=True,
                external_data=False,
                opset_version=opset,
                input_names=[tensor.name for tensor in program.signature.inputs],
                output_names=[tensor.name for tensor in program.signature.outputs],
                verbose=False,
            )
    except Exception as error:  # the exporter raises errors of many unrelated classes
        raise GraphError(f"{name} cannot be exported to ONNX opset {opset}: {error}") from error
    if exported is None:
        raise GraphError(f"{name} cannot be exported to ONNX opset {opset}: torch.onnx.export returned nothing")
    model = ir.to_proto(rewrite_graph(exported.model, optimize=optimize))
    if (written := _opset(model)) != opset:
        raise GraphError(f"{name} cannot be exported to ONNX opset {opset}, only to {written}; give --opset {written}")
    model.graph.name = name
    _name_batch_axis(model)
    _strip_metadata(model)
    onnx.helper.set_model_props(model, {MODEL_PROPERTY: spec.encode()})
    lint_onnx(name, model)
    onnx.checker.check_model(model, full_check=True)
    return model


def _opset(model: onnx.ModelProto) -> int:
    return int(next(entry.version for entry in model.opset_import if entry.domain == ""))


def _name_batch_axis(model: onnx.ModelProto) -> None:
    """Call the one symbolic size `batch`; the exporter names it after a variable of its own."""
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = "batch"


def _strip_metadata(model: onnx.ModelProto) -> None:
    """Remove what the exporter notes of source files and stacks: they hold this machine's paths."""
    for holder in [model, model.graph, *model.graph.node, *model.graph.value_info]:
        del holder.metadata_props[:]
    for value in [*model.graph.input, *model.graph.output, *model.graph.initializer]:
        del value.metadata_props[:]
