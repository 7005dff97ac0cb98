"""What must not be in an ONNX graph, looked for in its bytes before ONNX Runtime sees them.

A graph is a program. One that the exporter wrote computes the same from the same inputs, in steps that end, and is all
in one file. Of one from anywhere else that is found out here, from its bytes alone: nothing is computed.

What ordinary operators make of their inputs' sizes is not followed: a network may well cost more than a machine has.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ._graph_sizes import Known, attribute_too_large, of_node, product, too_large
from ._graph_weights import Weight
from ._model_spec import MAX_VALUES
from ._protobuf import BYTES, FIXED32, VARINT, Field, Message, Schema

_MAX_NODES = 10_000
_MAX_DEPTH = 8  # of branches in branches
_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
_ENDLESS = {"Loop", "Scan", "SequenceMap"}
_STANDARD = {"", "ai.onnx"}
_ORT_FORMAT = slice(4, 8), b"ORTM"

_SPARSE = "holds sparse numbers, as no graph of ours does"
_OWN = "defines operators of its own; a graph must be made of ONNX's"


def _schema(
    one: Sequence[int] = (),
    several: Sequence[int] = (),
    *,
    varints: Sequence[int] = (),
    refused: Mapping[int, str] | None = None,
) -> Schema:
    """The fields of a message by their numbers: of bytes, one or several; of an integer; and those that are refused."""
    return {
        **{number << 3 | BYTES: False for number in one},
        **{number << 3 | BYTES: True for number in several},
        **{number << 3 | VARINT: False for number in varints},
        **{number << 3 | BYTES: reason for number, reason in (refused or {}).items()},
    }


# ModelProto and its parts, https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, without those of a TypeProto.
_GRAPHS, _OPSETS = 7, 8
_MODEL = _schema((2, 3, 4, 6, _GRAPHS), (_OPSETS, 14), varints=(1, 5), refused={20: "holds how to train it", 25: _OWN})
_OPSET = _schema((1,), varints=(2,))
_NODES, _WEIGHTS, _INPUTS = 1, 5, 11
_GRAPH = _schema(
    (2, 10), (_NODES, _WEIGHTS, _INPUTS, 12, 13, 16), refused={14: "holds notes on quantization", 15: _SPARSE}
)
_VALUE = _schema((1, 2, 3), (4,))
_TAKES, _GIVES, _OPERATOR, _ATTRIBUTES, _DOMAIN = 1, 2, 4, 5, 7
_NODE = _schema((3, _OPERATOR, 6, _DOMAIN, 8), (_TAKES, _GIVES, _ATTRIBUTES, 9))
_FLOAT, _INT, _TENSOR, _BRANCH, _FLOATS, _INTS, _TENSORS, _BRANCHES = 2, 3, 5, 6, 7, 8, 10, 11
_ATTRIBUTE = {
    **_schema((1, 4, _TENSOR, _BRANCH, 13, 14), (_FLOATS, _INTS, 9, _TENSORS, _BRANCHES, 15), varints=(_INT, 20)),
    **_schema(refused={21: _OWN, 22: _SPARSE, 23: _SPARSE}),
    _FLOAT << 3 | FIXED32: False,
    _FLOATS << 3 | FIXED32: True,
    _INTS << 3 | VARINT: True,
}


class GraphVersions(NamedTuple):
    """What a graph says of its format.

    Args:
        ir_version: Version of ONNX's format.
        opset: Version of ONNX's operators.
    """

    ir_version: int
    opset: int


def check_graph(content: bytes, file: str) -> GraphVersions:
    """Refuse an ONNX graph that is damaged, or does anything but compute the same in steps that end.

    Args:
        content: The graph, a `ModelProto`.
        file: What it is called in messages.

    Returns:
        The versions of its format.

    Raises:
        BundleError: It draws random numbers, loops, is in training mode, has operators of other domains or of its own,
            weights in other files, NaN among its weights, or asks for more than any model of ours needs.
    """
    message = Message(content, file)
    try:
        return _Check(message).model(len(content))
    except IndexError as error:  # a field goes on behind the end
        raise message.damaged() from error


class _Check:
    """One pass over a graph."""

    def __init__(self, message: Message) -> None:
        self.message = message
        self.nodes = 0

    def model(self, end: int) -> GraphVersions:
        """Check a `ModelProto`."""
        message = self.message
        where, mark = _ORT_FORMAT
        if message.data[where] == mark:  # ONNX Runtime would read these bytes as its own format, and as nothing else
            raise message.damaged()
        fields = message.fields(_MODEL, 0, end)
        opsets = [message.fields(_OPSET, *field[1:]) for field in fields.get(_OPSETS, ())]
        standard = [opset for opset in opsets if message.text(opset.get(1, ())) in _STANDARD]
        if len(standard) != 1 or _GRAPHS not in fields:
            raise message.damaged()
        self.graph(fields[_GRAPHS][0], {}, 0)
        return GraphVersions(message.number(fields.get(1, ())), message.number(standard[0].get(2, ())))

    def graph(self, graph: Field, outer: Mapping[bytes, Known], depth: int) -> None:
        """Check a `GraphProto`, given what is known of the values around it."""
        message = self.message
        if depth > _MAX_DEPTH:
            raise message.error(f"has branches in branches, more than {_MAX_DEPTH} deep")
        fields = message.fields(_GRAPH, *graph[1:])
        known = dict(outer)
        for value in fields.get(_INPUTS, ()):
            known.update((message.bytes_of(name), None) for name in message.fields(_VALUE, *value[1:]).get(1, ()))
        for field in fields.get(_WEIGHTS, ()):
            weight = Weight(message, field)
            known[weight.name] = weight.product
        nodes = fields.get(_NODES, ())
        self.nodes += len(nodes)
        if self.nodes > _MAX_NODES:
            raise message.error(f"has more than {_MAX_NODES} nodes")
        for node in nodes:
            self.node(node, known, depth)

    def node(self, node: Field, known: dict[bytes, Known], depth: int) -> None:
        """Check a `NodeProto`, and add its outputs to what is known."""
        message = self.message
        fields = message.fields(_NODE, *node[1:])
        operator = message.text(fields.get(_OPERATOR, ()))
        self.operator(operator, message.text(fields.get(_DOMAIN, ())))
        result: Known = math.inf
        for attribute in fields.get(_ATTRIBUTES, ()):
            result = self.attribute(attribute, operator, known, depth)
        if operator != "Constant":
            names = [message.bytes_of(field) for field in fields.get(_TAKES, ())]
            given = {place: known.get(name, math.nan) for place, name in enumerate(names) if name}
            if any(value is not None and math.isnan(value) for value in given.values()):
                raise message.error(f"{operator} takes what is not there yet; nodes must be in order")
            if too_large(operator, given):
                raise message.error(f"{operator} asks for more than {MAX_VALUES} values")
            result = of_node(operator, list(given.values()))
        known.update((message.bytes_of(field), result) for field in fields.get(_GIVES, ()))

    def operator(self, operator: str, domain: str) -> None:
        """Refuse operators that no graph of ours has."""
        if domain not in _STANDARD:
            raise self.message.error(f"{domain}::{operator} is not a standard ONNX operator")
        if operator in _RANDOM:
            raise self.message.error(f"{operator} draws random numbers; noise must be an input of the graph")
        if operator == "Dropout":
            raise self.message.error("Dropout must not be in an exported graph; call .eval() before exporting")
        if operator in _ENDLESS:
            raise self.message.error(f"{operator} runs others again and again; write out what is repeated")

    def attribute(self, attribute: Field, operator: str, known: dict[bytes, Known], depth: int) -> Known:
        """Check an `AttributeProto`; return what is known of it."""
        message = self.message
        fields = message.fields(_ATTRIBUTE, *attribute[1:])
        name = message.text(fields.get(1, ()))
        for field in _of(fields, _BRANCH, _BRANCHES):
            self.graph(field, known, depth + 1)
        weights = [Weight(message, field).product for field in _of(fields, _TENSOR, _TENSORS)]
        integers = [number for field in _of(fields, _INT, _INTS) for number in message.integers(field)]
        numbers = integers + [number for field in _of(fields, _FLOAT, _FLOATS) for number in message.floats(field)]
        if any(map(math.isnan, numbers)):
            raise message.error(f"{name} of {operator} holds NaN; train again")
        if name == "training_mode" and any(numbers):
            raise message.error(f"{operator} is in training mode; call .eval() before exporting")
        result = weights[0] if weights else product(numbers)
        if attribute_too_large(name, result):
            raise message.error(f"{name} of {operator} asks for more than {MAX_VALUES} values")
        return result


def _of(fields: Mapping[int, list[Field]], *numbers: int) -> Iterator[Field]:
    """The fields of these numbers."""
    return itertools.chain.from_iterable(fields.get(number, ()) for number in numbers)
