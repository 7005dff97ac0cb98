"""The lint: what must not be in a graph that is to give the same numbers everywhere."""

from __future__ import annotations

import onnx
import torch
from torch._ops import OpOverload
from torch.export import ExportedProgram

from edgevae import BundleError, check_graph

from .errors import GraphError


def lint_program(name: str, program: ExportedProgram) -> None:
    """Refuse random operators, dropout and training-mode norms in a traced program.

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
        drops = _argument(node, operator, "dropout_p") != 0  # attention has none by itself, and is marked as random
        if training is None and drops and torch.Tag.nondeterministic_seeded in operator.tags:
            raise GraphError(f"{name}: {operator} draws random numbers; noise must be an input of the graph")


def lint_onnx(name: str, model: onnx.ModelProto) -> None:
    """Refuse what would make an ONNX graph random, unportable, or bound to one batch size.

    Raises:
        GraphError: The runtime would refuse the graph, for which `edgevae.check_graph` has the reasons; or its batch
            axis is frozen. The message names what it is.
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
    """The value of an operator's argument of one of these names, `None` where it has none."""
    schema = operator._schema  # noqa: SLF001 - an operator shows its schema nowhere else
    for index, argument in enumerate(schema.arguments):
        if argument.name in names:
            return (
                node.args[index] if index < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
            )
    return None
