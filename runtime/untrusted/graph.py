"""`check_graph`: checks the bytes of an ONNX graph before ONNX Runtime reads them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ..record import MAX_VALUES
from .growth import MAX_SHAPE_VALUES, MAX_SIZE, SIZED, Node, Outline, Value, check_growth
from .protobuf import BYTES, FIXED32, VARINT, Field, Message, Schema, bytes_field, integer_field, shown
from .weights import Weight

_MAX_NODES = 10_000
_RANDOM = {
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
}
_SUBGRAPH_OPERATORS = {"If", "Loop", "Scan", "SequenceMap"}
_SIZE_ATTRIBUTES = {
    *("pads", "strides", "dilations", "kernel_shape", "output_shape", "output_padding", "output_height"),
    *("output_width", "sampling_ratio", "hidden_size", "scales", "height_scale", "width_scale"),
}
"""Attributes that are sizes."""
_STANDARD_DOMAINS = {"", "ai.onnx"}
_ORT_MARK = slice(4, 8), b"ORTM"  # ONNX Runtime would read a file with this mark in its own format

_SPARSE = "holds sparse tensors, which no exported graph does"
_SUBGRAPH = "holds graphs within the graph; write out what they compute"
_OWN = "defines operators of its own; use those of ONNX"


def _schema(
    one: Sequence[int] = (),
    several: Sequence[int] = (),
    *,
    varints: Sequence[int] = (),
    refused: Mapping[int, str] | None = None,
) -> Schema:
    """Return the schema of a message, from the numbers of its fields.

    Args:
        one: Bytes fields that may occur once.
        several: Bytes fields that may occur several times.
        varints: Integer fields.
        refused: Bytes fields that must not occur, with the reason.
    """
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
_NODES, _WEIGHTS, _INPUTS, _OUTPUTS, _VALUES = 1, 5, 11, 12, 13
_GRAPH = _schema(
    (2, 10),
    (_NODES, _WEIGHTS, _INPUTS, _OUTPUTS, _VALUES, 16),
    refused={14: "holds notes on quantization", 15: _SPARSE},
)
_VALUE = _schema((1, 2, 3), (4,))
_TYPE, _TENSOR_TYPE, _SHAPE = _schema((1, 6)), _schema((2,), varints=(1,)), _schema((), (1,))
_SIZE = _schema((2, 3), varints=(1,))
_TAKES, _GIVES, _OPERATOR, _ATTRIBUTES, _DOMAIN = 1, 2, 4, 5, 7
_NODE = _schema((3, _OPERATOR, 6, _DOMAIN, 8), (_TAKES, _GIVES, _ATTRIBUTES, 9))
_FLOAT, _INT, _TENSOR, _FLOATS, _INTS, _TENSORS = 2, 3, 5, 7, 8, 10
_ATTRIBUTE = {
    **_schema((1, 4, _TENSOR, 13, 14), (_FLOATS, _INTS, 9, _TENSORS, 15), varints=(_INT, 20)),
    **_schema(refused={6: _SUBGRAPH, 11: _SUBGRAPH, 21: _OWN, 22: _SPARSE, 23: _SPARSE}),
    _FLOAT << 3 | FIXED32: False,
    _FLOATS << 3 | FIXED32: True,
    _INTS << 3 | VARINT: True,
}


class GraphVersions(NamedTuple):
    """The versions that a graph states.

    Args:
        ir_version: Version of ONNX's format.
        opset: Version of ONNX's operators.
    """

    ir_version: int
    opset: int


def check_graph(content: bytes, file: str) -> GraphVersions:
    """Refuse an ONNX graph that is damaged, not deterministic, may not terminate, or needs too much memory.

    Args:
        content: The graph, a `ModelProto`.
        file: Its name in messages.

    Returns:
        The versions of its format.

    Raises:
        BundleError: It draws random numbers, loops, is in training mode, has non-standard operators, weights in other
            files or that are NaN, or needs more memory than any exported model; or ONNX Runtime cannot load it.
        InstallError: ONNX Runtime is not installed.
    """
    message = Message(content, file)
    try:
        versions, outline = _Check(message).model(len(content))
        check_growth(outline)
    except (IndexError, UnicodeDecodeError) as error:  # a field is cut off; a name is not UTF-8
        raise message.damaged() from error
    return versions


class _Check:
    """One pass over a graph, which collects its outline."""

    def __init__(self, message: Message) -> None:
        self.message = message
        self.inputs: list[Value] = []
        self.weights: list[Value] = []
        self.nodes: list[Node] = []
        self._integers: dict[bytes, list[int]] = {}
        """Values that are computed so far, by name: the numbers of small integer constants, nothing for others."""

    def model(self, end: int) -> tuple[GraphVersions, Outline]:
        """Check a `ModelProto`."""
        message = self.message
        where, mark = _ORT_MARK
        if message.data[where] == mark:
            raise message.damaged()
        fields = message.fields(_MODEL, 0, end)
        opsets = [message.fields(_OPSET, *field[1:]) for field in fields.get(_OPSETS, ())]
        standard = [opset for opset in opsets if message.text(opset.get(1, ())) in _STANDARD_DOMAINS]
        if len(standard) != 1 or _GRAPHS not in fields:
            raise message.damaged()
        self.graph(fields[_GRAPHS][0])
        versions = GraphVersions(message.number(fields.get(1, ())), message.number(standard[0].get(2, ())))
        if min(versions) < 0:
            raise message.damaged()
        stated = integer_field(1, versions.ir_version) + bytes_field(_OPSETS, integer_field(2, versions.opset))
        return versions, Outline(message.file, stated, self.inputs, self.weights, self.nodes)

    def graph(self, graph: Field) -> None:
        """Check a `GraphProto`."""
        message = self.message
        fields = message.fields(_GRAPH, *graph[1:])
        nodes = fields.get(_NODES, ())
        if len(nodes) > _MAX_NODES:
            raise message.error(f"has more than {_MAX_NODES} nodes")
        for field in fields.get(_WEIGHTS, ()):
            weight = Weight(message, field)
            content = message.bytes_of(field) if weight.count <= MAX_SHAPE_VALUES else None
            self.weights.append(Value(weight.name, weight.onnx_type, weight.dims, content))
            self._integers[weight.name] = weight.integers
        for field in fields.get(_INPUTS, ()):
            value = self.value(field)
            if value is None:
                raise message.error("an input has no name, or no known number of axes")
            if value.name not in self._integers:
                self.inputs.append(value)
                self._integers[value.name] = []
        for node in nodes:
            self.node(node)
        for field in _of(fields, _OUTPUTS, _VALUES):
            self.value(field)  # ONNX Runtime trusts the sizes that these state

    def value(self, field: Field) -> Value | None:
        """Check a `ValueInfoProto`; return it if it is a tensor whose number of axes is known."""
        message = self.message
        value = message.fields(_VALUE, *field[1:])
        kinds = [message.fields(_TYPE, *kind[1:]).get(1, ()) for kind in value.get(2, ())]
        tensors = [message.fields(_TENSOR_TYPE, *tensor[1:]) for kind in kinds for tensor in kind]
        shapes = [message.fields(_SHAPE, *shape[1:]) for tensor in tensors for shape in tensor.get(2, ())]
        sizes = [message.fields(_SIZE, *size[1:]).get(1, ()) for shape in shapes for size in shape.get(1, ())]
        dims = tuple(message.number(size) if size else None for size in sizes)
        onnx_type = message.number(tensors[0].get(1, ())) if tensors else 0
        name = message.text_of(value[1][0]) if 1 in value else b""
        if onnx_type < 0 or any(size is not None and not 0 <= size <= MAX_SIZE for size in dims):
            raise message.error(f"{shown(name)} of type {onnx_type} asks for more than {MAX_SIZE} values, {dims}")
        return Value(name, onnx_type, dims) if name and shapes else None

    def node(self, node: Field) -> None:
        """Check a `NodeProto`."""
        message = self.message
        fields = message.fields(_NODE, *node[1:])
        for field in _of(fields, 3, _OPERATOR, 6, 8):
            message.text_of(field)
        operator = message.text(fields.get(_OPERATOR, ()))
        self.operator(operator, message.text(fields.get(_DOMAIN, ())))
        integers: dict[str, list[int]] = {}
        for attribute in fields.get(_ATTRIBUTES, ()):
            self.attribute(attribute, operator, integers)
        takes = [message.text_of(field) for field in fields.get(_TAKES, ())]
        if any(name and name not in self._integers for name in takes):
            raise message.error(f"{operator} takes a value that is not computed yet; nodes must be in order")
        if operator in SIZED and any(abs(size) > MAX_SIZE for name in takes for size in self._integers.get(name, ())):
            raise message.error(f"{operator} asks for more than {MAX_SIZE} values")
        steps = self._integers.get(takes[4], []) if operator == "Slice" and len(takes) > 4 and takes[4] else [1]
        if min(steps, default=0) < 1:  # a backward slice of an empty value ends ONNX Runtime's process
            raise message.error("Slice must have constant steps of at least 1; use Gather for another order")
        gives = [message.text_of(field) for field in fields.get(_GIVES, ())]
        found = integers.get("value", []) + integers.get("value_ints", []) + integers.get("value_int", [])
        self._integers.update(dict.fromkeys(filter(None, gives), found if operator == "Constant" else []))
        start, end = (integers.get(name, [None])[0] for name in ("start", "end"))
        kept = (_OPERATOR, _ATTRIBUTES, _DOMAIN)
        content = b"".join(
            bytes_field(number, message.bytes_of(part)) for number in kept for part in fields.get(number, ())
        )
        self.nodes.append(Node(operator, takes, gives, content, slice(start, end)))

    def operator(self, operator: str, domain: str) -> None:
        """Refuse operators that no exported graph has."""
        if domain not in _STANDARD_DOMAINS:
            raise self.message.error(f"{domain}::{operator} is not a standard ONNX operator")
        if operator in _RANDOM:
            raise self.message.error(f"{operator} draws random numbers; noise must be an input of the graph")
        if operator == "Dropout":
            raise self.message.error("Dropout must not be in an exported graph; call .eval() before exporting")
        if operator in _SUBGRAPH_OPERATORS:
            raise self.message.error(f"{operator} {_SUBGRAPH}")

    def attribute(self, attribute: Field, operator: str, integers: dict[str, list[int]]) -> None:
        """Check an `AttributeProto`; add its integers to those of the node."""
        message = self.message
        fields = message.fields(_ATTRIBUTE, *attribute[1:])
        name = message.text(fields.get(1, ()))
        for field in _of(fields, 1, 4, 9, 13):
            message.text_of(field)
        constants = [number for field in _of(fields, _TENSOR, _TENSORS) for number in Weight(message, field).integers]
        integers[name] = constants + [
            number for field in _of(fields, _INT, _INTS) for number in message.integers(field)
        ]
        floats = [number for field in _of(fields, _FLOAT, _FLOATS) for number in message.floats(field)]
        if any(map(math.isnan, floats)):
            raise message.error(f"{name} of {operator} holds NaN; train again")
        if name == "training_mode" and any([*integers[name], *floats]):
            raise message.error(f"{operator} is in training mode; call .eval() before exporting")
        if name in _SIZE_ATTRIBUTES and _size([*integers[name], *floats]) > MAX_VALUES:
            raise message.error(f"{name} of {operator} asks for more than {MAX_VALUES} values")


def _size(factors: Iterable[float]) -> float:
    """Return the product of factors, where a factor of a half counts like one of 2."""
    return math.prod(max(abs(float(factor)), 1 / abs(float(factor))) for factor in factors if factor)


def _of(fields: Mapping[int, list[Field]], *numbers: int) -> Iterator[Field]:
    """Return the fields with these numbers."""
    return itertools.chain.from_iterable(fields.get(number, ()) for number in numbers)
