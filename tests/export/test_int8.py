"""Which convolutions int8 takes, and what it rounds behind them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from edgevae import Reference
from edgevae.export import GraphError
from edgevae.export.int8 import _relus_behind, _wide_convolutions, to_int8
from edgevae.export.rewrites import OF_TRANSPOSED
from tests.export.graphs import SPEC, graph, run, weights


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
    scaled = graph([helper.make_node("Gemm", ["x", "w"], ["y"], alpha=0.5)], {"x": (4,)}, ["y"], w=weights(4, 4))
    turned = graph([helper.make_node("Gemm", ["x", "w"], ["y"], transA=1)], {"x": (4,)}, ["y"], w=weights(4, 4))
    for model in (convolution(), computed, scaled, turned):
        with pytest.raises(GraphError, match="int8 has nothing to do in graph: it has no products of rows and w"):
            to_int8(model, SPEC, None)


LAYERS = {
    "with a factor": helper.make_node("Gemm", ["h", "w", "b"], ["y"], alpha=0.5),
    "with a factor of the bias": helper.make_node("Gemm", ["h", "w", "b"], ["y"], beta=0.5),
    "transposed again": helper.make_node("Gemm", ["h", "v", "b"], ["y"], transB=1),
    "not transposed": helper.make_node("Gemm", ["h", "v", "b"], ["y"]),
    "without a bias": helper.make_node("Gemm", ["h", "v"], ["y"], transB=1),
    "of sequences": helper.make_node("MatMul", ["t", "v"], ["y"]),
}


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_product_of_any_kind_beside_a_transposed_one_is_nearly_the_same(layer: str, *, calibrated: bool) -> None:
    first = helper.make_node("Gemm", ["x", "v", "b"], ["h"], transB=1)
    parts = helper.make_node("Reshape", ["h", "shape"], ["t"])
    arrays = {
        "v": weights(40, 40),
        "w": weights(40, 40, seed=1),
        "b": weights(40, seed=2),
        "v_scale": weights(40, 40, seed=3),
    }
    nodes = [first, parts, LAYERS[layer], helper.make_node("Gemm", ["h", "v_scale"], ["z"])]
    model = graph(nodes, {"x": (40,)}, ["h", "y", "z"], **arrays, shape=np.array([-1, 2, 40]))
    x = np.maximum(weights(100, 40, seed=4), 0)
    calibration = Reference(np.array(["sample"] * 100), {"x": x}) if calibrated else None
    reduced = to_int8(model, SPEC, calibration)
    assert "MatMulInteger" in [node.op_type for node in reduced.graph.node]
    for found, expected in zip(run(reduced, {"x": x}), run(model, {"x": x}), strict=True):
        assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
