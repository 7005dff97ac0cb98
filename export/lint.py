"""Checks that refuse graphs which would not give the same numbers everywhere."""

from __future__ import annotations

import onnx
import torch
from torch._ops import OpOverload
from torch.export import ExportedProgram

from edgevae import BundleError, check_graph

from .errors import GraphError


def lint_program(name: str, program: ExportedProgram) -> None:
    """Refuse random operators, dropout and layers in training mode in a traced program.

    Raises:
        GraphError: There is one; the message names it.
    """
    for node in program.graph.nodes:
        operator = node.target
        if not isinstance(operator, OpOverload):
            continue
        training = _argument(node, operator, "train", "training")
        if training is True:
            raise GraphError(f"{name}: {operator} is in training mode; call .eval() before exporting")
        drops = _argument(node, operator, "dropout_p") != 0  # attention is tagged as random even without dropout
        if training is None and drops and torch.Tag.nondeterministic_seeded in operator.tags:
            raise GraphError(f"{name}: {operator} draws random numbers; noise must be an input of the graph")


def lint_onnx(name: str, model: onnx.ModelProto) -> None:
    """Refuse an ONNX graph that the runtime would refuse, or whose batch size is fixed.

    Raises:
        GraphError: `edgevae.check_graph` refuses the graph, or a batch axis is fixed; the message says why.
    """
    try:
        check_graph(model.SerializeToString(), name)
    except BundleError as error:
        raise GraphError(str(error)) from error
    for value in [*model.graph.input, *model.graph.output]:
        batch = value.type.tensor_type.shape.dim[0] if value.type.tensor_type.shape.dim else None
        if batch is None or not batch.dim_param:
            size = "no axis" if batch is None else batch.dim_value
            raise GraphError(f"{name}: the batch axis of {value.name} is frozen at {size}; it must be dynamic")


def _argument(node: torch.fx.Node, operator: OpOverload, *names: str) -> object:
    """Return the value of an operator's argument with one of these names, or `None`."""
    schema = operator._schema  # noqa: SLF001 - there is no public way to the schema
    for index, argument in enumerate(schema.arguments):
        if argument.name in names:
            return (
                node.args[index] if index < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
            )
    return None
