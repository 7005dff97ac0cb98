"""The outline of a graph, and ONNX Runtime's sessions of parts of it: what its weights are is left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from .errors import BundleError
from .protobuf import bytes_field, integer_field
from .providers import import_onnxruntime, new_session

Shape: TypeAlias = "tuple[int, ...]"

FEW = 64
"""How many numbers a constant, or what is computed of sizes, has at most that says how large something is to be."""
_SILENT = 4  # of ONNX Runtime's log severities: nothing but fatal errors
_ONNX_TYPES = {np.dtype(np.int32): 6, np.dtype(np.int64): 7}


class Value(msgspec.Struct, frozen=True):
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


class Node(msgspec.Struct, frozen=True):
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


class Outline(msgspec.Struct, frozen=True):
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


def session_of(
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
        return new_session(outline.versions + bytes_field(7, graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # likewise
        raise refused(outline, error) from error


def refused(outline: Outline, error: Exception) -> BundleError:
    """Return the error for a graph that ONNX Runtime does not load."""
    return BundleError(f"ONNX Runtime {import_onnxruntime().__version__} cannot load {outline.file}: {error}")


def dims_of(value: Value, rows: int) -> Shape:
    """Return a value's shape for a batch of `rows`."""
    return tuple(rows if size is None else size for size in value.dims)


def value_info(value: Value, rows: int) -> bytes:
    """Return the `ValueInfoProto` of an input, for so many rows."""
    sizes = b"".join(bytes_field(1, integer_field(1, size)) for size in dims_of(value, rows))
    tensor = integer_field(1, value.onnx_type) + bytes_field(2, sizes)
    return bytes_field(1, value.name) + bytes_field(2, bytes_field(1, tensor))


def _constant(name: bytes, array: NDArray[Any]) -> bytes:
    """Return the `TensorProto` of integers."""
    sizes = b"".join(integer_field(1, size) for size in array.shape)
    content = array.astype(array.dtype.newbyteorder("<")).tobytes()
    return sizes + integer_field(2, _ONNX_TYPES[array.dtype]) + bytes_field(8, name) + bytes_field(9, content)
