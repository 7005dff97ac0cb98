"""The lint: what must not be in a graph that is to give the same numbers everywhere."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import torch
from torch._ops import OpOverload
from torch.export import ExportedProgram

from export._errors import GraphError

_RANDOM_OPS = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
_STANDARD_DOMAINS = {"", "ai.onnx"}


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
        if training is None and torch.Tag.nondeterministic_seeded in operator.tags:
            raise GraphError(f"{name}: {operator} draws random numbers; noise must be an input of the graph")


def lint_onnx(name: str, model: onnx.ModelProto) -> None:
    """Refuse what would make an ONNX graph random, unportable, or bound to one batch size.

    Raises:
        GraphError: A random operator, dropout, a training-mode norm, an operator outside of ONNX's standard, weights in
            another file, or a frozen batch axis; the message names it.
    """
    for node in _nodes(model):
        if node.op_type in _RANDOM_OPS:
            raise GraphError(f"{name}: {node.op_type} draws random numbers; noise must be an input of the graph")
        if node.op_type == "Dropout":
            raise GraphError(f"{name}: Dropout must not be in an exported graph; call .eval() before exporting")
        if any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute):
            raise GraphError(f"{name}: {node.op_type} is in training mode; call .eval() before exporting")
        if node.domain not in _STANDARD_DOMAINS:
            raise GraphError(f"{name}: {node.domain}::{node.op_type} is not a standard ONNX operator")
    for initializer in model.graph.initializer:
        if initializer.data_location == onnx.TensorProto.EXTERNAL:
            raise GraphError(f"{name}: {initializer.name} lies in another file; a graph must be one file")
    for value in [*model.graph.input, *model.graph.output]:
        batch = value.type.tensor_type.shape.dim[0] if value.type.tensor_type.shape.dim else None
        if batch is None or not batch.dim_param:
            size = "no axis" if batch is None else batch.dim_value
            raise GraphError(f"{name}: the batch axis of {value.name} is frozen at {size}; it must be dynamic")


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those in subgraphs and in functions included."""
    pending = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    functions = {(function.domain, function.name) for function in model.functions}
    while pending:
        node = pending.pop()
        for attribute in node.attribute:
            for graph in [attribute.g, *attribute.graphs]:
                pending.extend(graph.node)
        if (node.domain, node.op_type) not in functions:  # a call: the function's own nodes are looked at
            yield node


def _argument(node: torch.fx.Node, operator: OpOverload, *names: str) -> object:
    """The value of an operator's argument of one of these names, `None` where it has none."""
    schema = operator._schema  # noqa: SLF001 - an operator shows its schema nowhere else
    for index, argument in enumerate(schema.arguments):
        if argument.name in names:
            return (
                node.args[index] if index < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
            )
    return None
