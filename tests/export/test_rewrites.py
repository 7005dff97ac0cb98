"""Graph rewrites: the same function, and the reason why."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnxscript import ir

from edgevae.export.rewrites import rewrite_for_integers
from tests.export.graphs import graph, operators, rewritten, run, weights


def of_one(operator: str) -> onnx.ModelProto:
    return graph([helper.make_node(operator, ["x"], ["y"])], {"x": ()}, ["y"])


SIGMOID = rewritten(of_one("Sigmoid"))


def test_the_exact_sigmoid_is_torchs_to_a_relative_millionth() -> None:
    x = np.linspace(-87, 100, 200_001, dtype=np.float32)
    assert "Sigmoid" not in operators(SIGMOID)
    (found,) = run(SIGMOID, {"x": x})
    np.testing.assert_allclose(found, torch.sigmoid(torch.from_numpy(x)).numpy(), rtol=1e-6, atol=0)


def test_the_exact_sigmoid_has_its_limits() -> None:
    x = np.array([-np.inf, -200, 0, 200, np.inf], np.float32)
    np.testing.assert_array_equal(run(SIGMOID, {"x": x})[0], np.array([0, 0, 0.5, 1, 1], np.float32))
    assert np.isnan(run(SIGMOID, {"x": np.array([np.nan], np.float32)})[0]).all()


def torch_softplus(threshold: float) -> onnx.ModelProto:
    """Softplus as PyTorch's exporter writes it."""
    nodes = [
        helper.make_node("Softplus", ["x"], ["soft"]),
        helper.make_node("Greater", ["x", "threshold"], ["large"]),
        helper.make_node("Where", ["large", "x", "soft"], ["y"]),
    ]
    return graph(nodes, {"x": ()}, ["y"], threshold=np.array(threshold, np.float32))


@pytest.mark.parametrize("model", [of_one("Softplus"), torch_softplus(20)], ids=["plain", "torch"])
def test_the_fast_softplus_is_torchs_to_a_millionth(model: onnx.ModelProto) -> None:
    x = np.linspace(-100, 100, 400_001, dtype=np.float32)
    fast = rewritten(model)
    assert operators(fast) == ["Relu", "Abs", "Sigmoid", "Log", "Sub"]
    expected = torch.nn.functional.softplus(torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(run(fast, {"x": x})[0], expected, atol=1e-6, rtol=0)
    assert operators(rewritten(model, optimize=False)) == operators(model)


def test_the_fast_softplus_has_its_limits() -> None:
    found = run(rewritten(torch_softplus(20)), {"x": np.array([-np.inf, -1e30, 1e30, np.nan], np.float32)})[0]
    np.testing.assert_array_equal(found, np.array([0, 0, 1e30, np.nan], np.float32))


def test_a_softplus_with_a_low_threshold_keeps_its_step() -> None:
    model = torch_softplus(2)
    x = np.array([1.999, 2.001], np.float32)
    np.testing.assert_allclose(run(rewritten(model), {"x": x})[0], run(model, {"x": x})[0], atol=1e-6)


def hidden_softplus(*readers: onnx.NodeProto, outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    """The softplus of `x`, `h`, and who reads it, rewritten."""
    nodes = [helper.make_node("Softplus", ["x"], ["h"]), *readers]
    return rewritten(graph(nodes, {"x": (5,)}, list(outputs), w=np.eye(5, dtype=np.float32)))


def for_integers(model: onnx.ModelProto) -> onnx.ModelProto:
    return ir.to_proto(rewrite_for_integers(ir.from_proto(model)))


PRODUCT = helper.make_node("MatMul", ["h", "w"], ["y"])
"""Of the identity: gives the softplus itself."""


def test_a_hidden_softplus_is_torchs_to_a_millionth_without_a_logarithm() -> None:
    hidden = hidden_softplus(PRODUCT)
    assert {"Log", "Softplus"}.isdisjoint(operators(hidden))
    x = np.linspace(-100, 100, 400_000, dtype=np.float32).reshape(-1, 5)
    (found,) = run(hidden, {"x": x})
    expected = torch.nn.functional.softplus(torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
    near = np.abs(x) < 8  # beyond, float32 itself rounds by as much
    np.testing.assert_allclose(found[near], expected[near], atol=6e-7, rtol=0)


def test_a_softplus_that_a_dense_layer_reads_has_no_logarithm() -> None:
    assert "Log" not in operators(hidden_softplus(helper.make_node("Gemm", ["h", "w"], ["y"], transB=1)))


def test_a_hidden_softplus_has_its_limits() -> None:
    limits = np.array([[-np.inf], [-1e30], [1e30], [np.nan]], np.float32)
    (found,) = run(hidden_softplus(PRODUCT), {"x": np.broadcast_to(limits, (4, 5)).copy()})
    np.testing.assert_array_equal(found[:, 0], np.array([0, 0, 1e30, np.nan], np.float32))


def test_the_coarse_softplus_is_off_by_0_0029_at_most_and_exact_where_it_is_large_or_small() -> None:
    coarse = for_integers(hidden_softplus(PRODUCT))
    assert operators(coarse) == ["Abs", "HardSigmoid", "Mul", "Mul", "Mul", "Relu", "Add", "MatMul"]
    x = np.linspace(-100, 100, 400_000, dtype=np.float32).reshape(-1, 5)
    (found,) = run(coarse, {"x": x})
    expected = torch.nn.functional.softplus(torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(found, expected, atol=0.0029, rtol=0)
    far = np.abs(x) > 11
    np.testing.assert_array_equal(found[far], np.maximum(x, 0)[far])


@pytest.mark.parametrize(
    "model",
    [
        hidden_softplus(PRODUCT, outputs=("y", "h")),
        hidden_softplus(PRODUCT, helper.make_node("Mul", ["h", "y"], ["scaled"]), outputs=("scaled",)),
        hidden_softplus(helper.make_node("MatMul", ["w", "h"], ["y"])),
        hidden_softplus(helper.make_node("MatMul", ["h", "x"], ["y"])),
        hidden_softplus(helper.make_node("Gemm", ["x", "w", "h"], ["y"])),
    ],
    ids=["output", "scale", "weight", "by no weight", "bias"],
)
def test_a_softplus_that_is_more_than_a_products_input_stays_exact(model: onnx.ModelProto) -> None:
    assert "Log" in operators(model)
    assert operators(for_integers(model)) == operators(model)


def gemm(x: str, weight: str, bias: str, out: str) -> onnx.NodeProto:
    return helper.make_node("Gemm", [x, weight, bias], [out], alpha=1.0, beta=1.0, transA=0, transB=1)


def test_a_sign_goes_into_the_weights_bit_for_bit() -> None:
    nodes = [gemm("x", "w", "b", "product"), helper.make_node("Neg", ["product"], ["y"])]
    model = graph(nodes, {"x": (7,)}, ["y"], w=weights(5, 7), b=weights(5))
    fast = rewritten(model)
    assert operators(fast) == ["Gemm"]
    x = weights(33, 7, seed=1)
    np.testing.assert_array_equal(run(fast, {"x": x})[0], run(model, {"x": x})[0])


def test_a_sign_goes_into_a_transposed_convolution_bit_for_bit() -> None:
    deconvolution = helper.make_node("ConvTranspose", ["x", "w", "b"], ["maps"], strides=[2, 2], pads=[1, 1, 1, 1])
    nodes = [deconvolution, helper.make_node("Neg", ["maps"], ["y"])]
    model = graph(nodes, {"x": (3, 4, 5)}, ["y"], w=weights(3, 2, 3, 3), b=weights(2))
    fast = rewritten(model)
    assert operators(fast) == ["ConvTranspose"]
    x = weights(7, 3, 4, 5, seed=1)
    np.testing.assert_array_equal(run(fast, {"x": x})[0], run(model, {"x": x})[0])


@pytest.mark.parametrize(("operator", "left"), [("Neg", ["Gemm", "Reshape"]), ("Relu", ["Gemm", "Relu", "Reshape"])])
def test_what_stands_behind_a_reshape_goes_before_it_bit_for_bit(operator: str, left: list[str]) -> None:
    nodes = [
        gemm("x", "w", "b", "product"),
        helper.make_node("Reshape", ["product", "shape"], ["maps"], allowzero=0),
        helper.make_node(operator, ["maps"], ["y"]),
    ]
    model = graph(nodes, {"x": (7,)}, ["y"], w=weights(6, 7), b=weights(6), shape=np.array([-1, 2, 3]))
    early = rewritten(model)
    assert operators(early) == left
    x = weights(33, 7, seed=1)
    np.testing.assert_array_equal(run(early, {"x": x})[0], run(model, {"x": x})[0])


def test_a_reshape_that_others_use_stays_where_it_is() -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["maps"]),
        helper.make_node("Relu", ["maps"], ["y"]),
        helper.make_node("Exp", ["maps"], ["z"]),
    ]
    model = graph(nodes, {"x": (6,)}, ["y", "z"], shape=np.array([-1, 2, 3]))
    assert operators(rewritten(model)) == ["Reshape", "Relu", "Exp"]


def test_weights_that_others_use_keep_their_sign() -> None:
    nodes = [
        gemm("x", "w", "b", "first"),
        helper.make_node("Neg", ["first"], ["y"]),
        gemm("other", "w", "b", "z"),
    ]
    model = graph(nodes, {"x": (7,), "other": (7,)}, ["y", "z"], w=weights(5, 7), b=weights(5))
    assert operators(rewritten(model)) == ["Gemm", "Neg", "Gemm"]


def heads(rows: int, shared: bool = True) -> onnx.ModelProto:
    """Two heads of an encoder, in the order of its outputs."""
    second = "h" if shared else "other"
    nodes = [gemm("h", "w1", "b1", "z_loc"), gemm(second, "w2", "b2", "log"), helper.make_node("Exp", ["log"], ["s"])]
    tensors = {"w1": weights(5, 7), "b1": weights(5), "w2": weights(rows, 7, seed=2), "b2": weights(rows, seed=3)}
    inputs: dict[str, tuple[int, ...]] = {"h": (7,)} if shared else {"h": (7,), "other": (7,)}
    return graph(nodes, inputs, ["z_loc", "s"], **tensors)


def test_two_heads_become_one_product_and_keep_their_order() -> None:
    model = heads(5)
    fast = rewritten(model)
    assert operators(fast) == ["Gemm", "Split", "Exp"]
    h = weights(33, 7, seed=1)
    for found, expected in zip(run(fast, {"h": h}), run(model, {"h": h}), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_what_uses_the_first_head_may_stand_before_the_second() -> None:
    nodes = [
        gemm("h", "w1", "b1", "z_loc"),
        helper.make_node("Relu", ["z_loc"], ["early"]),
        gemm("h", "w2", "b2", "late"),
    ]
    tensors = {"w1": weights(5, 7), "b1": weights(5), "w2": weights(5, 7, seed=2), "b2": weights(5, seed=3)}
    model = graph(nodes, {"h": (7,)}, ["early", "late"], **tensors)
    fast = rewritten(model)
    onnx.checker.check_model(onnx.shape_inference.infer_shapes(fast))
    assert operators(fast) == ["Gemm", "Split", "Relu"]
    h = weights(33, 7, seed=1)
    for found, expected in zip(run(fast, {"h": h}), run(model, {"h": h}), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", [heads(4), heads(5, shared=False)], ids=["other size", "other input"])
def test_heads_that_do_not_fit_together_stay_apart(model: onnx.ModelProto) -> None:
    assert operators(rewritten(model)) == ["Gemm", "Gemm", "Exp"]


def total(width: int, axis: int = -1) -> onnx.ModelProto:
    nodes = [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)]
    return graph(nodes, {"x": (width,)}, ["y"], axes=np.array([axis], np.int64))


@pytest.mark.parametrize("width", [1, 13, 50, 63])
def test_a_rows_sum_does_not_depend_on_its_place_in_the_batch(width: int) -> None:
    model = rewritten(total(width), optimize=False)
    assert operators(model) == ["Pad", "ReduceSum"]
    x = weights(64, width)
    (together,) = run(model, {"x": x})
    apart = np.concatenate([run(model, {"x": x[row : row + 1]})[0] for row in range(len(x))])
    np.testing.assert_array_equal(together, apart)
    np.testing.assert_allclose(together, x.astype(np.float64).sum(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", [1, 13, 50, 63])
def test_a_rows_logarithm_does_not_depend_on_its_place_in_the_batch(width: int) -> None:
    plain = graph([helper.make_node("Log", ["x"], ["y"])], {"x": (width,)}, ["y"])
    model = rewritten(plain, optimize=False)
    assert operators(model) == ["Pad", "Log", "Slice"]
    x = np.exp(weights(64, width))
    (together,) = run(model, {"x": x})
    apart = np.concatenate([run(model, {"x": x[row : row + 1]})[0] for row in range(len(x))])
    np.testing.assert_array_equal(together, apart)
    np.testing.assert_allclose(together, run(plain, {"x": x})[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("width", "axis"), [(64, -1), (50, 0)])
def test_sums_that_need_no_zeros_get_none(width: int, axis: int) -> None:
    assert operators(rewritten(total(width, axis))) == ["ReduceSum"]


def test_sums_of_integers_are_left_alone() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.INT64),
        helper.make_node("ReduceSum", ["whole", "axes"], ["y"], keepdims=0),
    ]
    model = graph(nodes, {"x": (50,)}, ["y"], axes=np.array([-1], np.int64))
    assert operators(rewritten(onnx.shape_inference.infer_shapes(model))) == ["Cast", "ReduceSum"]
