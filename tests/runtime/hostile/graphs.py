"""Graphs that are damaged, lie, hold no numbers, or read other files; their SHA-256 are right."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgevae.untrusted.protobuf import bytes_field
from tests.runtime.hostile.case import Case, Folder, graph
from tests.runtime.hostile.operators import sizes, through

DAMAGED, ELSEWHERE = "no ONNX graph, or a damaged one", "lies in another file"
FINITE, NUMBERS, UNKNOWN = "holds NaN or infinity", "numbers", "no ONNX graph from EdgeVAE"


def _first(model: ModelProto) -> TensorProto:
    """The largest weight."""
    return max(model.graph.initializer, key=lambda weight: len(weight.raw_data))


def _weight(name: str, change: Callable[[TensorProto], object], says: str, file: str = "reconstruct.onnx") -> Case:
    return graph(f"weight-{name}", lambda model: change(_first(model)), says, file)


def _poison(value: float, dtype: Any = np.float32) -> Callable[[TensorProto], None]:
    def change(weight: TensorProto) -> None:
        array = numpy_helper.to_array(weight).astype(dtype)
        array[-1, -1] = value
        weight.CopyFrom(numpy_helper.from_array(array, weight.name))

    return change


def _elsewhere(name: str, location: Callable[[Folder], str], *, offset: str = "0") -> Case:
    """Weights in a file that is there and right: only a refusal keeps it from being read."""

    def change(folder: Folder) -> None:
        model = onnx.load_from_string(folder.content("reconstruct.onnx"))
        weight = _first(model)
        target = folder.outside / "weights.bin"
        target.write_bytes(weight.raw_data)
        (folder.path / "weights.bin").write_bytes(weight.raw_data)
        for key, value in (("location", location(folder)), ("offset", offset), ("length", str(len(weight.raw_data)))):
            weight.external_data.add(key=key, value=value)
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        folder.replace("reconstruct.onnx", model.SerializeToString())

    return Case(f"external-{name}", change, ELSEWHERE)


def _attributes(model: ModelProto) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("more", float("nan")))


def _sparse(model: ModelProto) -> None:
    model.graph.sparse_initializer.add().dims.append(2**40)


def _bytes(name: str, change: Callable[[bytes], bytes], says: str, file: str = "reconstruct.onnx") -> Case:
    return Case(f"bytes-{name}", lambda folder: folder.replace(file, change(folder.content(file))), says)


def _negative(model: ModelProto) -> None:
    """Say of a value in the graph that its size is negative, which ONNX Runtime believes."""
    name = model.graph.node[0].output[0]
    model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", -5]))


def _packed(model: ModelProto, values: list[float]) -> None:
    """Add an attribute with very many numbers, a byte or four each."""
    model.graph.node[0].attribute.append(helper.make_attribute("more", values))


def _padded(content: bytes) -> bytes:
    """The graph with half a million nodes more, of two bytes each."""
    model = onnx.load_from_string(content)
    nodes = model.graph.SerializeToString() + b"\x0a\x00" * 500_000
    model.ClearField("graph")
    return model.SerializeToString() + bytes_field(7, nodes)


def _nest(depth: int) -> bytes:
    """A graph with a node with an attribute with a graph, and so on."""
    content = b""
    for _ in range(depth):
        content = bytes_field(1, bytes_field(5, bytes_field(6, content)))
    return bytes_field(8, b"\x10\x14") + bytes_field(7, content)


GRAPHS: tuple[Case, ...] = (
    _elsewhere("beside", lambda _: "weights.bin"),
    _elsewhere("up", lambda _: "../outside/weights.bin"),
    _elsewhere("absolute", lambda folder: str(folder.outside / "weights.bin")),
    _elsewhere("from-here", lambda folder: os.path.relpath(folder.outside / "weights.bin", folder.path.parent)),
    _elsewhere("memory", lambda _: "*/_ORT_MEM_ADDR_/*", offset="4096"),
    _elsewhere("device", lambda _: "/dev/zero"),
    _weight("nan", _poison(np.nan), FINITE),
    _weight("nan-lazily", _poison(np.nan), FINITE, "decoder.onnx"),
    _weight("infinity", _poison(np.inf), FINITE),
    _weight("minus-infinity", _poison(-np.inf), FINITE),
    _weight("half-nan", _poison(np.nan, np.float16), FINITE),
    _weight("double-nan", _poison(np.nan, np.float64), FINITE),
    _weight("of-doubles", _poison(0, np.float64), "cannot load"),
    _weight("of-integers", _poison(0, np.int64), "cannot load"),
    _weight("of-another-type", lambda weight: setattr(weight, "data_type", TensorProto.DOUBLE), "its sizes"),
    _weight("of-text", lambda weight: setattr(weight, "data_type", TensorProto.STRING), NUMBERS),
    _weight("of-unknown-type", lambda weight: setattr(weight, "data_type", 99), NUMBERS),
    _weight("huge-sizes", lambda weight: weight.dims.__setitem__(0, 2**40), "its sizes"),
    _weight("negative-sizes", lambda weight: weight.dims.__setitem__(0, -1), "has the sizes"),
    _weight("overflowing-sizes", lambda weight: weight.dims.extend([2**32, 2**32]), "its sizes"),
    _weight("many-axes", lambda weight: weight.dims.extend([1] * 100_000), "has the sizes"),
    _weight("no-numbers", lambda weight: weight.ClearField("raw_data"), "its sizes"),
    _weight("stored-twice", lambda weight: weight.float_data.append(1), "stored in 2 ways"),
    _weight("cut", lambda weight: setattr(weight, "raw_data", weight.raw_data[:-2]), "its sizes"),
    _weight("in-parts", lambda weight: setattr(weight.segment, "begin", 1), UNKNOWN),
    graph("nan-attribute", _attributes, "holds NaN"),
    graph("sparse-weights", _sparse, "sparse"),
    graph("training-info", lambda model: model.training_info.add(), "how to train"),
    graph("no-graph", lambda model: model.ClearField("graph"), DAMAGED),
    graph("no-opset", lambda model: model.ClearField("opset_import"), DAMAGED),
    graph("two-opsets", lambda model: model.opset_import.append(helper.make_opsetid("ai.onnx", 1)), DAMAGED),
    graph("future-opset", lambda model: setattr(model.opset_import[0], "version", 999), "opset"),
    graph("future-format", lambda model: setattr(model, "ir_version", 999), "IR version"),
    graph("no-nodes", lambda model: model.graph.ClearField("node"), "cannot load"),
    graph("out-of-order", lambda model: model.graph.node.reverse(), "nodes must be in order"),
    graph("other-model", lambda model: model.ClearField("metadata_props"), "does not fit its manifest: it was made"),
    graph("output-renamed", lambda model: setattr(model.graph.output[0], "name", "other"), "cannot load"),
    graph(
        "input-of-another-type",
        lambda model: setattr(model.graph.input[0].type.tensor_type, "elem_type", 7),
        "cannot load|fit",
    ),
    graph(
        "gathers-out-of-range",
        through(
            helper.make_node("Gather", ["given", "sizes"], ["one"], axis=1),
            helper.make_node("Add", ["given", "one"], ["made"]),
            constants=[sizes(2**40)],
        ),
        "cannot load|failed in",
    ),
    graph(
        "more-rows-than-asked",
        through(helper.make_node("Concat", ["given", "given"], ["made"], axis=0)),
        "must have shape|failed in",
        "decoder.onnx",
    ),
    _bytes("nonsense", lambda _: b"nonsense", "reconstruct.onnx: "),
    _bytes("zeros", lambda _: bytes(1000), "reconstruct.onnx: "),
    _bytes("ones", lambda _: b"\xff" * 1000, "reconstruct.onnx: "),
    _bytes("twice", lambda content: content + content, "twice what a graph has once"),
    _bytes("unknown-field", lambda content: content + b"\xfa\x7f\x00", UNKNOWN),
    _bytes("group", lambda content: content + b"\x0b\x0c", UNKNOWN),
    _bytes("length-beyond-the-end", lambda content: content + b"\x72\xff\xff\xff\xff\x07", DAMAGED),
    _bytes("endless-varint", lambda content: content + b"\x72" + b"\xff" * 1000, DAMAGED),
    graph("half-a-million-packed-integers", lambda model: _packed(model, [1] * 600_000), "has more than 500000 parts"),
    graph("half-a-million-packed-floats", lambda model: _packed(model, [1.0] * 600_000), "has more than 500000 parts"),
    _bytes("half-a-million-parts", _padded, "has more than 500000 parts"),
    _bytes("nested-branches", lambda _: _nest(1000), "holds graphs within the graph"),
    _bytes("other-format", lambda content: b"\x12\x90\x01\x00ORTM" + content, DAMAGED),
    _bytes("operator-that-is-no-text", lambda content: content.replace(b"Gemm", b"\xff\xfe\xfdm"), DAMAGED),
    _bytes("name-that-is-no-text", lambda content: content.replace(b"loc_img", b"\xff\xfe\xfd_img"), DAMAGED),
    graph("negative-size-of-a-value", _negative, "asks for more than"),
    _bytes("pickle", lambda _: b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.", "reconstruct.onnx: "),
    _bytes("zip", lambda content: b"PK\x03\x04" + content, "reconstruct.onnx: "),
)
