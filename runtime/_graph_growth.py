"""How much a graph makes of little: the sizes of all its values, for two rows and for many.

ONNX Runtime infers them without computing any. It is given the graph without its weights, all of whose values are
asked for as outputs; nothing is optimised, because that would compute what hangs on constants alone. Where a size hangs
on sizes, as a new shape of so many rows, that arithmetic on a few integers is run, and the rest inferred again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ._errors import BundleError
from ._onnxruntime import import_onnxruntime
from ._protobuf import bytes_field, integer_field, shown

Shape: TypeAlias = "tuple[int, ...]"

FEW = 64
"""How many numbers a constant, or what is computed of sizes, has at most that says how large something is to be."""
SIZED = {
    *("AffineGrid", "BlackmanWindow", "CenterCropPad", "Col2Im", "ConstantOfShape", "DFT", "Expand", "HammingWindow"),
    *("HannWindow", "MaxUnpool", "MelWeightMatrix", "OneHot", "Pad", "Range", "Resize", "Tile", "Upsample"),
}
"""Operators that take integers for sizes, which 64 bits must not end for."""
MAX_SIZE = 2**40  # of what such a number may be: sums of them stay far from where 64 bits end
_FEW_ROWS, _MANY_ROWS = 2, 1024
_MAX_ROW_VALUES = 2**27
_MAX_CONSTANTS, _CONSTANTS_EACH = 2**20, 8
_MAX_ROUNDS = 16
_SILENT = 4  # of ONNX Runtime's log severities: nothing but fatal errors
_INTEGERS = {"tensor(int32)", "tensor(int64)"}
_ONNX_TYPES = {np.dtype(np.int32): 6, np.dtype(np.int64): 7}


class Value(NamedTuple):
    """An input of a graph, or weights.

    Args:
        name: Its name.
        onnx_type: The number of ONNX's data type.
        dims: Its sizes; `None` is that of the batch.
        content: Of weights with `FEW` values or fewer, the `TensorProto`.
    """

    name: bytes
    onnx_type: int
    dims: tuple[int | None, ...]
    content: bytes | None = None


class Node(NamedTuple):
    """A node of a graph.

    Args:
        operator: Its type.
        takes: Names of its inputs.
        gives: Names of its outputs, without those that it leaves out.
        content: The `NodeProto`.
        part: Of `Shape`, which axes.
    """

    operator: str
    takes: Sequence[bytes]
    gives: Sequence[bytes]
    content: bytes
    part: slice


class Outline(NamedTuple):
    """A graph without its weights.

    Args:
        file: What it is called in messages.
        versions: The fields of the `ModelProto` that say its versions.
        inputs: What it takes.
        weights: Its constants.
        nodes: In order.
    """

    file: str
    versions: bytes
    inputs: Sequence[Value]
    weights: Sequence[Value]
    nodes: Sequence[Node]


def check_growth(outline: Outline) -> None:
    """Refuse a graph whose values take too much for a row, grow faster than the batch, or cannot be foreseen.

    Raises:
        BundleError: It is one; or ONNX Runtime cannot load it.
        InstallError: ONNX Runtime is not installed.
    """
    few, constant = _count(outline, _FEW_ROWS)
    held = sum(math.prod(_dims(weight, 0)) for weight in outline.weights)
    if constant > (most := _CONSTANTS_EACH * held + _MAX_CONSTANTS):
        raise BundleError(f"{outline.file}: asks for more than {most} values that hang on its {held} constants alone")
    if few > _FEW_ROWS * _MAX_ROW_VALUES:
        raise BundleError(f"{outline.file}: asks for more than {_MAX_ROW_VALUES} values for a row of its input")
    many, _ = _count(outline, _MANY_ROWS)
    if many * _FEW_ROWS > few * _MANY_ROWS:
        raise BundleError(f"{outline.file}: grows faster than the batch: {few} values for 2 rows, {many} for 1024")


def _count(outline: Outline, rows: int) -> tuple[int, int]:
    """Return how many values all nodes give, and how many of those hang on constants alone."""
    given = {value.name for value in outline.inputs}
    total = constant = 0
    for node, shapes in zip(outline.nodes, _sizes(outline, rows), strict=True):
        size = sum(math.prod(shape) for shape in shapes)
        total += size
        if given.isdisjoint(node.takes):
            constant += size
        else:
            given.update(node.gives)
    return total, constant


def _sizes(outline: Outline, rows: int) -> list[list[Shape]]:
    """Return the shapes of what each node gives, for so many rows."""
    known: dict[bytes, NDArray[Any]] = {}
    for _ in range(_MAX_ROUNDS):
        found = _inferred(outline, rows, known)
        unknown = [node for node in outline.nodes if any(found.get(name) is None for name in node.gives)]
        if not unknown:
            return [[found[name] or () for name in node.gives] for node in outline.nodes]
        more = _computed(outline, rows, known, found)
        if more.keys() <= known.keys():
            break
        known = more
    raise BundleError(f"{outline.file}: how large {unknown[0].operator} is to be hangs on more than the batch's size")


def _inferred(outline: Outline, rows: int, known: Mapping[bytes, NDArray[Any]]) -> dict[bytes, Shape | None]:
    """Return the shape of each value as far as it can be inferred."""
    nodes = [node for node in outline.nodes if not all(name in known for name in node.gives)]
    large = [weight for weight in outline.weights if weight.content is None]
    session = _session(outline, nodes, [_value(value, rows) for value in (*outline.inputs, *large)], known)
    found: dict[bytes, Shape | None] = {name: array.shape for name, array in known.items()}
    for output in session.get_outputs():
        shape = tuple(output.shape)
        if not output.type.startswith("tensor("):
            raise BundleError(f"{outline.file}: {shown(output.name.encode())} is {output.type}, no tensor")
        if any(isinstance(size, int) and size < 0 for size in shape):
            raise BundleError(f"{outline.file}: {shown(output.name.encode())} asks for more than there can be, {shape}")
        sized = all(isinstance(size, int) for size in shape)
        found[output.name.encode()] = shape if sized else None
    return found


def _computed(
    outline: Outline, rows: int, known: Mapping[bytes, NDArray[Any]], found: Mapping[bytes, Shape | None]
) -> dict[bytes, NDArray[Any]]:
    """Return the integers that are known, with what follows from the shapes that were found."""
    shapes = dict(found)
    shapes |= {value.name: _dims(value, rows) for value in (*outline.inputs, *outline.weights)}
    more = dict(known)
    for node in outline.nodes:
        shape = shapes.get(node.takes[0]) if node.takes else None
        if node.operator == "Shape" and shape is not None:
            more[node.gives[0]] = np.array(shape[node.part], np.int64)
        elif node.operator == "Size" and shape is not None:
            more[node.gives[0]] = np.array(math.prod(shape), np.int64)
    there = {weight.name for weight in outline.weights if weight.content is not None} | more.keys() | {b""}
    nodes = []
    for node in outline.nodes:
        few = all(_is_few(shapes.get(name)) for name in node.gives)
        if few and there.issuperset(node.takes) and not more.keys() >= set(node.gives):
            nodes.append(node)
            there.update(node.gives)
    if nodes:
        session = _session(outline, nodes, [], more)
        names = [output.name for output in session.get_outputs() if output.type in _INTEGERS]
        results = dict(zip((name.encode() for name in names), _run(outline, session, names), strict=True))
        whole = (node for node in nodes if results.keys() >= set(node.gives))
        more |= {name: results[name] for node in whole for name in node.gives}
    for node in outline.nodes:
        sizes = [more[name].astype(np.float64) for name in node.takes if name in more and node.operator in SIZED]
        if any(np.abs(size).max(initial=0) > MAX_SIZE for size in sizes):
            raise BundleError(f"{outline.file}: {node.operator} asks for more than {MAX_SIZE} values")
    return more


def _is_few(shape: Shape | None) -> bool:
    return shape is not None and math.prod(shape) <= FEW


def _run(outline: Outline, session: Any, names: Sequence[str]) -> list[NDArray[Any]]:
    try:
        arrays: list[NDArray[Any]] = session.run(names, {}) if names else []
    except Exception as error:  # ONNX Runtime's exceptions have no common base but Exception
        raise _refused(outline, error) from error
    return arrays


def _session(
    outline: Outline, nodes: Sequence[Node], inputs: Iterable[bytes], known: Mapping[bytes, NDArray[Any]]
) -> Any:
    """Return a session of some nodes, all of whose values are its outputs."""
    outputs = [name for node in nodes for name in node.gives]
    graph = b"".join(
        (
            *(bytes_field(1, node.content) for node in nodes),
            bytes_field(2, b"outline"),
            *(bytes_field(5, weight.content) for weight in outline.weights if weight.content is not None),
            *(bytes_field(5, _constant(name, array)) for name, array in known.items()),
            *(bytes_field(11, value) for value in inputs),
            *(bytes_field(12, bytes_field(1, name)) for name in outputs),
        )
    )
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = _SILENT
    try:
        return onnxruntime.InferenceSession(
            outline.versions + bytes_field(7, graph), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # likewise
        raise _refused(outline, error) from error


def _refused(outline: Outline, error: Exception) -> BundleError:
    return BundleError(f"ONNX Runtime {import_onnxruntime().__version__} cannot load {outline.file}: {error}")


def _dims(value: Value, rows: int) -> Shape:
    return tuple(rows if size is None else size for size in value.dims)


def _value(value: Value, rows: int) -> bytes:
    """Return the `ValueInfoProto` of an input, for so many rows."""
    sizes = b"".join(bytes_field(1, integer_field(1, size)) for size in _dims(value, rows))
    tensor = integer_field(1, value.onnx_type) + bytes_field(2, sizes)
    return bytes_field(1, value.name) + bytes_field(2, bytes_field(1, tensor))


def _constant(name: bytes, array: NDArray[Any]) -> bytes:
    """Return the `TensorProto` of integers."""
    sizes = b"".join(integer_field(1, size) for size in array.shape)
    content = array.astype(array.dtype.newbyteorder("<")).tobytes()
    return sizes + integer_field(2, _ONNX_TYPES[array.dtype]) + bytes_field(8, name) + bytes_field(9, content)
