"""Slices of nothing and of less, at which ONNX Runtime ends the process; the SHA-256 of the graphs are right."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import TensorProto, helper

from tests.runtime.hostile.case import Case, graph
from tests.runtime.hostile.operators import SIZE, sizes, through


def _slices() -> Iterator[Case]:
    end = 2**63 - 1
    ends = {"beyond": [1000], "end": [end], "rows": [1], "one": [1], "last": [-1], "before": [-end], "back": [-1]}
    nodes = [
        helper.make_node("Slice", ["given", "beyond", "end", "rows", "one"], ["nothing"]),
        helper.make_node("Slice", ["nothing", "last", "before", "rows", "back"], ["backwards"]),
        helper.make_node("ReduceSum", ["backwards"], ["sum"], keepdims=0),
        helper.make_node("Add", ["given", "sum"], ["made"]),
    ]
    constants = [sizes(*values, name=name) for name, values in ends.items()]
    yield graph("backwards-through-nothing", through(*nodes, constants=constants), "Slice must have constant steps")
    read = [
        helper.make_node("ReduceMax", ["given"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["step"], to=TensorProto.INT64),
        helper.make_node("Unsqueeze", ["step", "first"], ["steps"]),
        helper.make_node("Slice", ["given", "last", "before", "rows", "steps"], ["made"]),
    ]
    cropped = [
        helper.make_node("Pad", ["given", "less"], ["negative"]),
        helper.make_node("Slice", ["negative", "zero", "rows", "back"], ["made"]),
    ]
    less = [*constants, sizes(0, 0, 0, -10_000, name="less"), sizes(0, name="zero")]
    yield graph("slice-of-less-than-nothing", through(*cropped, constants=less), SIZE)
    steps = [*constants, sizes(0, name="first")]
    yield graph("backwards-by-what-it-reads", through(*read, constants=steps), "Slice must have constant steps")


SLICES: tuple[Case, ...] = tuple(_slices())
