"""How much a graph makes of little: the sizes of all its values, for two rows and for many.

ONNX Runtime infers them without computing any. It is given the graph without its weights, all of whose values are
asked for as outputs; nothing is optimised, because that would compute what hangs on constants alone. Where a size hangs
on sizes, as a new shape of so many rows, that arithmetic on a few integers is run, and the rest inferred again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError
from .graph_outline import FEW, Node, Outline, Shape, dims_of, refused, session_of, value_info
from .protobuf import shown

SIZED = {
    *("AffineGrid", "BlackmanWindow", "CenterCropPad", "Col2Im", "ConstantOfShape", "DFT", "Expand", "HammingWindow"),
    *("HannWindow", "MaxUnpool", "MelWeightMatrix", "OneHot", "Pad", "Range", "Resize", "Tile", "Upsample"),
}
"""Operators that take integers for sizes, which 64 bits must not end for."""
MAX_SIZE = 2**40  # of what such a number may be: sums of them stay far from where 64 bits end
_FEW_ROWS, _MANY_ROWS = 2, 1024
_MAX_ROW_VALUES = 2**27
_MAX_CONSTANTS, _CONSTANTS_EACH = 2**20, 8
_MAX_ROUNDS = 64
_INTEGERS = {"tensor(int32)", "tensor(int64)"}


def check_growth(outline: Outline) -> None:
    """Refuse a graph whose values take too much for a row, grow faster than the batch, or cannot be foreseen.

    Raises:
        BundleError: It is one; or ONNX Runtime cannot load it.
        InstallError: ONNX Runtime is not installed.
    """
    few, constant = _count(outline, _FEW_ROWS)
    held = sum(math.prod(dims_of(weight, 0)) for weight in outline.weights)
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
    found: dict[bytes, Shape] = {value.name: dims_of(value, rows) for value in (*outline.inputs, *outline.weights)}
    known: dict[bytes, NDArray[Any]] = {}
    for _ in range(_MAX_ROUNDS):
        now = found | _inferred(outline, _ready(outline, found, known), rows, known)
        unknown = [node for node in outline.nodes if not now.keys() >= set(node.gives)]
        if not unknown:
            return [[now[name] for name in node.gives] for node in outline.nodes]
        more = _computed(outline, known, now)
        if len(now) == len(found) and len(more) == len(known):
            break
        found, known = now, more
    raise BundleError(f"{outline.file}: how large {unknown[0].operator} is to be hangs on more than the batch's size")


def _ready(outline: Outline, found: Mapping[bytes, Shape], known: Mapping[bytes, NDArray[Any]]) -> Sequence[Node]:
    """Return the nodes whose sizes can be inferred: a slice of a size that is not seen to be one ends the process."""
    there = {b"", *known, *(value.name for value in (*outline.inputs, *outline.weights))}
    nodes = []
    for node in outline.nodes:
        sliced = node.operator == "Slice" and node.takes[0] not in found
        if not sliced and there.issuperset(node.takes) and not known.keys() >= set(node.gives):
            nodes.append(node)
            there.update(node.gives)
    return nodes


def _inferred(
    outline: Outline, nodes: Sequence[Node], rows: int, known: Mapping[bytes, NDArray[Any]]
) -> dict[bytes, Shape]:
    """Return the shapes of what is known and of what nodes give, as far as they can be inferred."""
    large = [weight for weight in outline.weights if weight.content is None]
    session = session_of(outline, nodes, [value_info(value, rows) for value in (*outline.inputs, *large)], known)
    found: dict[bytes, Shape] = {name: array.shape for name, array in known.items()}
    for output in session.get_outputs():
        shape = tuple(output.shape)
        if not output.type.startswith("tensor("):
            raise BundleError(f"{outline.file}: {shown(output.name.encode())} is {output.type}, no tensor")
        if any(isinstance(size, int) and size < 0 for size in shape):
            raise BundleError(f"{outline.file}: {shown(output.name.encode())} asks for more than there can be, {shape}")
        if all(isinstance(size, int) for size in shape):
            found[output.name.encode()] = shape
    return found


def _computed(
    outline: Outline, known: Mapping[bytes, NDArray[Any]], shapes: Mapping[bytes, Shape]
) -> dict[bytes, NDArray[Any]]:
    """Return the integers that are known, with what follows from the shapes that were found."""
    more = dict(known)
    for node in outline.nodes:
        shape = shapes.get(node.takes[0]) if node.takes else None
        if node.operator == "Shape" and shape is not None:
            more[node.gives[0]] = np.array(shape[node.part], np.int64)
        elif node.operator == "Size" and shape is not None:
            more[node.gives[0]] = np.array(min(math.prod(shape), MAX_SIZE + 1), np.int64)
    there = {weight.name for weight in outline.weights if weight.content is not None} | more.keys() | {b""}
    nodes = []
    for node in outline.nodes:
        few = all(_is_few(shapes.get(name)) for name in node.gives)
        if few and there.issuperset(node.takes) and not more.keys() >= set(node.gives):
            nodes.append(node)
            there.update(node.gives)
    if nodes:
        session = session_of(outline, nodes, [], more)
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
        raise refused(outline, error) from error
    return arrays
