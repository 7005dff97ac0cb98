"""An ONNX graph: any bytes are one that may run, or a `BundleError`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgevae import BundleError, check_graph
from tests.fuzz.target import Target

FIXTURES = Path(__file__).parents[1] / "fixtures" / "bundles" / "v1"
OPERATORS = (
    "Shape",
    "Size",
    "Concat",
    "Expand",
    "Tile",
    "Slice",
    "Reshape",
    "NonZero",
    "ConstantOfShape",
    "If",
    "Loop",
)


def make(_work: Path) -> Target:
    sizes = (
        graph(node("Shape", "x", end=1), node("Concat", "Shape", "w", axis=0), node("Expand", "v", "Concat")),
        graph(node("Size", "x"), node("Range", "zero", "Size", "one")),
        graph(node("Shape", "x"), node("Mul", "Shape", "w"), node("Tile", "x", "Mul")),
        graph(node("Slice", "x", "w", "ends"), node("Constant", value_ints=[4]), node("Reshape", "Slice", "Constant")),
        graph(node("NonZero", "x")),
        graph(node("Transpose", "x"), node("MatMul", "x", "Transpose")),
    )
    files = [path.read_bytes() for path in sorted(FIXTURES.glob("*/*.onnx")) if path.stat().st_size < 8192]
    return Target(check, [*sizes, *files], [name.encode() for name in OPERATORS])


def node(operator: str, *takes: str, **attributes: Any) -> NodeProto:
    """Return a node that gives what it is called."""
    return helper.make_node(operator, takes, [operator], **attributes)


def graph(*nodes: NodeProto) -> bytes:
    """Return a graph of x that has a few integers, some of them scalars, among its constants."""
    arrays = {"w": [4], "v": [[1] * 4], "ends": [2**63 - 1], "zero": 0, "one": 1}
    constants = [numpy_helper.from_array(np.array(array, np.int64), name) for name, array in arrays.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])
    y = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    whole = helper.make_graph(nodes, "graph", [x], [y], constants)
    opsets = [helper.make_opsetid("", 20)]
    return helper.make_model(whole, opset_imports=opsets, ir_version=10).SerializeToString()


def check(data: bytes) -> None:
    with contextlib.suppress(BundleError):
        versions = check_graph(data, "graph.onnx")
        assert min(versions) >= 0
