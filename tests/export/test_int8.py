"""Which convolutions int8 takes, and what it rounds behind them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from export import GraphError
from export._int8 import _relus_behind, _wide_convolutions, to_int8
from export._rewrites import OF_TRANSPOSED
from tests.export.graphs import SPEC, graph, weights


def convolution(*behind: onnx.NodeProto, channels: int = 8, weight: str = "w") -> onnx.ModelProto:
    """A convolution of `x`, `maps`, and what reads it."""
    node = helper.make_node("Conv", ["x", weight], ["maps"], name="conv")
    return graph([node, *behind], {"x": (channels, 5, 5)}, ["maps"], **{weight: weights(4, channels, 3, 3)})


@pytest.mark.parametrize(("channels", "taken"), [(1, set()), (7, set()), (8, {"conv"}), (64, {"conv"})])
def test_convolutions_of_eight_channels_and_more_are_taken(channels: int, taken: set[str]) -> None:
    assert _wide_convolutions(convolution(channels=channels)) == taken


def test_convolutions_that_were_transposed_or_have_computed_weights_are_not_taken() -> None:
    assert _wide_convolutions(convolution(weight=f"{OF_TRANSPOSED}w")) == set()
    nodes = [helper.make_node("Neg", ["w"], ["-w"]), helper.make_node("Conv", ["x", "-w"], ["y"], name="conv")]
    assert _wide_convolutions(graph(nodes, {"x": (8, 5, 5)}, ["y"], w=np.ones((4, 8, 3, 3), np.float32))) == set()


RELU = helper.make_node("Relu", ["maps"], ["hidden"], name="relu")
OTHERS = [
    helper.make_node("Abs", ["maps"], ["absolute"], name="abs"),
    helper.make_node("Relu", ["hidden"], ["again"], name="again"),
]


def test_a_relu_is_rounded_in_the_place_of_the_convolution_that_it_alone_reads() -> None:
    assert _relus_behind(convolution(RELU, OTHERS[1]), {"conv"}) == {"relu"}
    assert _relus_behind(convolution(RELU, OTHERS[1]), set()) == set()
    assert _relus_behind(convolution(RELU, OTHERS[0]), {"conv"}) == set()
    assert _relus_behind(convolution(OTHERS[0]), {"conv"}) == set()


def test_a_graph_with_nothing_to_compute_in_integers_is_an_error() -> None:
    computed = graph([helper.make_node("MatMul", ["x", "x"], ["y"])], {"x": (3, 3)}, ["y"])
    for model in (convolution(), computed):
        with pytest.raises(GraphError, match="int8 has nothing to do in graph: it has no products but"):
            to_int8(model, SPEC, None)
