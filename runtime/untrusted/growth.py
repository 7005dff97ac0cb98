"""How much memory a graph needs: the sizes of all its values, for a small batch and for a large one.

ONNX Runtime infers the sizes without computing any value. It is given the graph without its weights, once for each of
the two batches, in one session whose outputs are all the values. Nothing is optimised, because that would compute what
depends on constants alone. Where a size depends on other sizes, as in an Expand to the batch's size, that arithmetic on
a few integers is run, and the rest is inferred again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError
from ..providers import import_onnxruntime, new_session
from .protobuf import bytes_field, integer_field, shown

Shape: TypeAlias = "tuple[int, ...]"
Integers: TypeAlias = "dict[bytes, NDArray[Any]]"
"""Integer values that are known, by name."""

SIZED = {
    *("AffineGrid", "BlackmanWindow", "CenterCropPad", "Col2Im", "ConstantOfShape", "DFT", "Expand", "HammingWindow"),
    *("HannWindow", "MaxUnpool", "MelWeightMatrix", "OneHot", "Pad", "Range", "Resize", "Tile", "Upsample"),
}
"""Operators with a size among their inputs."""
MAX_SIZE = 2**40  # limit for such an input: sums of sizes must not overflow 64 bits
MAX_SHAPE_VALUES = 64
"""A value of more numbers than this is not taken for a shape, or for arithmetic on shapes."""

_SMALL_BATCH, _LARGE_BATCH = 2, 1024
_MAX_VALUES_PER_ROW = 2**27
_MAX_CONSTANTS, _MAX_CONSTANTS_PER_WEIGHT = 2**20, 8
_MAX_ROUNDS = 64
_LOG_FATAL = 4  # of ONNX Runtime's log severities
_INTEGER_TYPES = {"tensor(int32)", "tensor(int64)"}
_ONNX_TYPES = {np.dtype(np.int32): 6, np.dtype(np.int64): 7}


class Value(msgspec.Struct, frozen=True):
    """An input of a graph, or a weight.

    Args:
        name: Its name.
        onnx_type: The number of ONNX's data type.
        dims: Its sizes; `None` is the batch's.
        content: The `TensorProto` of a weight of at most `MAX_SHAPE_VALUES` numbers.
    """

    name: bytes
    onnx_type: int
    dims: tuple[int | None, ...]
    content: bytes | None = None

    def shape(self, rows: int) -> Shape:
        """Return its shape for a batch of `rows`."""
        return tuple(rows if size is None else size for size in self.dims)


class Node(msgspec.Struct, frozen=True):
    """A node of a graph.

    Args:
        operator: Its type.
        inputs: Names; empty for one that is left out.
        outputs: Names; empty for one that is left out.
        content: The fields of the `NodeProto` that define its computation.
        axes: For `Shape`, which axes.
    """

    operator: str
    inputs: Sequence[bytes]
    outputs: Sequence[bytes]
    content: bytes
    axes: slice

    @property
    def names(self) -> list[bytes]:
        """The names of the outputs that are not left out."""
        return [name for name in self.outputs if name]


class Outline(msgspec.Struct, frozen=True):
    """A graph without its weights.

    Args:
        file: Its name in messages.
        versions: The fields of the `ModelProto` with its versions.
        inputs: Its inputs.
        weights: Its constants.
        nodes: In order.
    """

    file: str
    versions: bytes
    inputs: Sequence[Value]
    weights: Sequence[Value]
    nodes: Sequence[Node]


def check_growth(outline: Outline) -> None:
    """Refuse a graph that needs too many values for a row, grows faster than the batch, or has data-dependent sizes.

    Raises:
        BundleError: It is one; or ONNX Runtime cannot load it.
        InstallError: ONNX Runtime is not installed.
    """
    both, batches = _for_both_batches(outline)
    shapes = _infer_sizes(both)
    num_values = dict.fromkeys((0, _SMALL_BATCH, _LARGE_BATCH), 0)
    for node, rows in zip(both.nodes, batches, strict=True):
        num_values[rows] += sum(math.prod(shapes[name]) for name in node.names)
    constants, small, large = num_values.values()
    num_weights = sum(math.prod(weight.shape(0)) for weight in outline.weights)
    if constants > (most := _MAX_CONSTANTS_PER_WEIGHT * num_weights + _MAX_CONSTANTS):
        raise BundleError(
            f"{outline.file}: asks for more than {most} values that depend on its {num_weights} constants alone"
        )
    small, large = small + constants, large + constants
    if small > _SMALL_BATCH * _MAX_VALUES_PER_ROW:
        raise BundleError(f"{outline.file}: asks for more than {_MAX_VALUES_PER_ROW} values for a row of its input")
    if large * _SMALL_BATCH > small * _LARGE_BATCH:
        raise BundleError(f"{outline.file}: grows faster than the batch: {small} values for 2 rows, {large} for 1024")


def _for_both_batches(outline: Outline) -> tuple[Outline, list[int]]:
    """Return one graph with a copy of the nodes for each batch, and each node's rows: 0 if it depends on no input."""
    dependent = {value.name for value in outline.inputs}
    constant_nodes, nodes = [], []
    for node in outline.nodes:
        if dependent.isdisjoint(node.inputs):
            constant_nodes.append(node)
        else:
            nodes.append(node)
            dependent.update(node.names)
    inputs, all_nodes, batches = [], list(constant_nodes), [0] * len(constant_nodes)
    constants = {weight.name for weight in outline.weights}.union(*(node.names for node in constant_nodes))
    for rows in (_SMALL_BATCH, _LARGE_BATCH):
        renamed = {name: b"%d rows of %s" % (rows, name) for name in dependent}
        if not constants.isdisjoint(renamed.values()):
            raise BundleError(f"{outline.file}: has values of the same name")
        inputs += [Value(renamed[value.name], value.onnx_type, value.shape(rows)) for value in outline.inputs]
        for node in nodes:
            takes, gives = ([renamed.get(name, name) for name in names] for names in (node.inputs, node.outputs))
            all_nodes.append(msgspec.structs.replace(node, inputs=takes, outputs=gives))
            batches.append(rows)
    return msgspec.structs.replace(outline, inputs=inputs, nodes=all_nodes), batches


def _infer_sizes(outline: Outline) -> dict[bytes, Shape]:
    """Return the shapes of all values of a graph whose inputs have known sizes."""
    shapes = {value.name: value.shape(0) for value in (*outline.inputs, *outline.weights)}
    integers: Integers = {}
    for _ in range(_MAX_ROUNDS):
        now = shapes | _infer(outline, _inferrable(outline, shapes, integers), integers)
        unknown = [node for node in outline.nodes if not now.keys() >= set(node.names)]
        if not unknown:
            return now
        more = _compute(outline, integers, now)
        if len(now) == len(shapes) and len(more) == len(integers):
            break
        shapes, integers = now, more
    raise BundleError(f"{outline.file}: how large {unknown[0].operator} is to be depends on more than the batch's size")


def _inferrable(outline: Outline, shapes: Mapping[bytes, Shape], integers: Integers) -> list[Node]:
    """Return the nodes whose sizes ONNX Runtime may infer: slicing a value of unknown sizes can end the process."""
    there = {b"", *integers, *(value.name for value in (*outline.inputs, *outline.weights))}
    nodes = []
    for node in outline.nodes:
        sliced = node.operator == "Slice" and node.inputs[0] not in shapes
        if not sliced and there.issuperset(node.inputs) and not integers.keys() >= set(node.names):
            nodes.append(node)
            there.update(node.names)
    return nodes


def _infer(outline: Outline, nodes: Sequence[Node], integers: Integers) -> dict[bytes, Shape]:
    """Return the shapes of known integers, and of what nodes give as far as they can be inferred."""
    large_weights = [weight for weight in outline.weights if weight.content is None]
    session = _session(outline, nodes, map(_value_info, (*outline.inputs, *large_weights)), integers)
    found: dict[bytes, Shape] = {name: array.shape for name, array in integers.items()}
    for output in session.get_outputs():
        shape = tuple(output.shape)
        if not output.type.startswith("tensor("):
            raise BundleError(f"{outline.file}: {shown(output.name.encode())} is {output.type}, no tensor")
        if any(isinstance(size, int) and size < 0 for size in shape):
            raise BundleError(f"{outline.file}: {shown(output.name.encode())} asks for more than there can be, {shape}")
        if all(isinstance(size, int) for size in shape):
            found[output.name.encode()] = shape
    return found


def _compute(outline: Outline, integers: Integers, shapes: Mapping[bytes, Shape]) -> Integers:
    """Return the known integers, and those that follow from shapes."""
    more = dict(integers)
    for node in outline.nodes:
        shape = shapes.get(node.inputs[0]) if node.inputs else None
        if node.operator == "Shape" and shape is not None:
            more[node.outputs[0]] = np.array(shape[node.axes], np.int64)
        elif node.operator == "Size" and shape is not None:
            more[node.outputs[0]] = np.array(min(math.prod(shape), MAX_SIZE + 1), np.int64)
    there = {weight.name for weight in outline.weights if weight.content is not None} | more.keys() | {b""}
    nodes = []
    for node in outline.nodes:
        is_small = all(math.prod(shapes.get(name, (math.inf,))) <= MAX_SHAPE_VALUES for name in node.names)
        if is_small and there.issuperset(node.inputs) and not more.keys() >= set(node.names):
            nodes.append(node)
            there.update(node.names)
    if nodes:
        session = _session(outline, nodes, [], more)
        names = [output.name for output in session.get_outputs() if output.type in _INTEGER_TYPES]
        results = dict(zip((name.encode() for name in names), _run(outline, session, names), strict=True))
        complete = (node for node in nodes if results.keys() >= set(node.names))
        more |= {name: results[name] for node in complete for name in node.names}
    for node in outline.nodes:
        sizes = [more[name].astype(np.float64) for name in node.inputs if name in more and node.operator in SIZED]
        if any(np.abs(size).max(initial=0) > MAX_SIZE for size in sizes):
            raise BundleError(f"{outline.file}: {node.operator} asks for more than {MAX_SIZE} values")
    return more


def _run(outline: Outline, session: Any, names: Sequence[str]) -> list[NDArray[Any]]:
    try:
        arrays: list[NDArray[Any]] = session.run(names, {}) if names else []
    except Exception as error:  # ONNX Runtime's exceptions have no common base but Exception
        raise _refused(outline, error) from error
    return arrays


def _session(outline: Outline, nodes: Sequence[Node], inputs: Iterable[bytes], integers: Integers) -> Any:
    """Return an ONNX Runtime session of some nodes, all of whose values are its outputs."""
    graph = b"".join(
        (
            *(bytes_field(1, _node(node)) for node in nodes),
            bytes_field(2, b"outline"),
            *(bytes_field(5, weight.content) for weight in outline.weights if weight.content is not None),
            *(bytes_field(5, _constant(name, array)) for name, array in integers.items()),
            *(bytes_field(11, value) for value in inputs),
            *(bytes_field(12, bytes_field(1, name)) for node in nodes for name in node.names),
        )
    )
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = _LOG_FATAL
    try:
        return new_session(outline.versions + bytes_field(7, graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of any class, as above
        raise _refused(outline, error) from error


def _refused(outline: Outline, error: Exception) -> BundleError:
    return BundleError(f"ONNX Runtime {import_onnxruntime().__version__} cannot load {outline.file}: {error}")


def _node(node: Node) -> bytes:
    """Return the `NodeProto` of a node."""
    names = [bytes_field(1, name) for name in node.inputs] + [bytes_field(2, name) for name in node.outputs]
    return b"".join(names) + node.content


def _value_info(value: Value) -> bytes:
    """Return the `ValueInfoProto` of an input with known sizes."""
    sizes = b"".join(bytes_field(1, integer_field(1, size)) for size in value.shape(0))
    tensor = integer_field(1, value.onnx_type) + bytes_field(2, sizes)
    return bytes_field(1, value.name) + bytes_field(2, bytes_field(1, tensor))


def _constant(name: bytes, array: NDArray[Any]) -> bytes:
    """Return the `TensorProto` of integers."""
    sizes = b"".join(integer_field(1, size) for size in array.shape)
    content = array.astype(array.dtype.newbyteorder("<")).tobytes()
    return sizes + integer_field(2, _ONNX_TYPES[array.dtype]) + bytes_field(8, name) + bytes_field(9, content)
