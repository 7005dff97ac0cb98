"""From a traced program to an ONNX graph."""

from __future__ import annotations

import re

import onnx
from onnxscript import ir
from torch.export import ExportedProgram

from edgevae import MODEL_PROPERTY, ModelSpec
from edgevae.train.conversion import convert
from edgevae.train.programs import Program

from .errors import GraphError
from .lint import lint_onnx
from .rewrites import rewrite_graph


def to_onnx(
    name: str, program: Program, traced: ExportedProgram, opset: int, spec: ModelSpec, *, optimize: bool = True
) -> onnx.ModelProto:
    """Return the ONNX graph of a traced program: rewritten, checked, and without paths of this machine.

    Args:
        name: The graph's name.
        program: Names its inputs and outputs.
        traced: The program, traced.
        opset: ONNX opset version.
        spec: The model's choices. The graph stores them, so that a manifest that contradicts them is noticed.
        optimize: Whether to rewrite the graph for speed; rewrites for accuracy are always applied.

    Raises:
        GraphError: The program cannot be expressed in this opset, or `lint_onnx` refuses the graph.
        TraceError: An operator has no ONNX form.
    """
    signature = program.signature
    inputs, outputs = ([tensor.name for tensor in tensors] for tensors in (signature.inputs, signature.outputs))
    model = ir.to_proto(rewrite_graph(convert(traced, opset, inputs, outputs), optimize=optimize))
    if (written := opset_of(model)) != opset:
        raise GraphError(f"{name} cannot be exported to ONNX opset {opset}, only to {written}; give --opset {written}")
    model.graph.name = name
    _name_batch_axis(model)
    _strip_metadata(model)
    onnx.helper.set_model_props(model, {MODEL_PROPERTY: spec.encode()})
    lint_onnx(name, model)
    onnx.checker.check_model(model, full_check=True)
    return model


def opset_of(model: onnx.ModelProto) -> int:
    """Return a graph's version of the standard operators."""
    return int(next(entry.version for entry in model.opset_import if entry.domain == ""))


def _name_batch_axis(model: onnx.ModelProto) -> None:
    """Call the size of the batch `batch`, in place of the symbol that was traced; 8 lines a row make `8*batch`.

    Only equal sizes may have the same name: ONNX Runtime plans memory by it.
    """
    symbol = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(rf"\b{re.escape(symbol)}\b", "batch", dim.dim_param)


def _strip_metadata(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes on source files and stacks, which contain paths of this machine."""
    for holder in [model, model.graph, *model.graph.node, *model.graph.value_info]:
        del holder.metadata_props[:]
    for value in [*model.graph.input, *model.graph.output, *model.graph.initializer]:
        del value.metadata_props[:]
