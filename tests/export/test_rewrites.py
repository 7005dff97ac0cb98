"""Graph rewrites: each gives the same function."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

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


def softplus(
    *readers: onnx.NodeProto, outputs: tuple[str, ...] = ("y",), threshold: float | None = None
) -> onnx.ModelProto:
    """The softplus of `x`, `h`, and its readers; with a threshold, as PyTorch's exporter writes it."""
    nodes = [helper.make_node("Softplus", ["x"], ["h"])]
    if threshold is not None:
        nodes = [
            helper.make_node("Softplus", ["x"], ["soft"]),
            helper.make_node("Greater", ["x", "threshold"], ["large"]),
            helper.make_node("Where", ["large", "x", "soft"], ["h"]),
        ]
    constants = {"w": np.eye(5, dtype=np.float32), "threshold": np.array(threshold or 0, np.float32)}
    return graph([*nodes, *readers], {"x": (5,)}, list(outputs), **constants)


PRODUCT = helper.make_node("MatMul", ["h", "w"], ["y"])
"""Of the identity: gives the softplus itself."""


@pytest.mark.parametrize("model", [softplus(PRODUCT), softplus(PRODUCT, threshold=20)], ids=["plain", "torch"])
def test_the_fast_softplus_of_a_hidden_layer_is_torchs_to_a_millionth(model: onnx.ModelProto) -> None:
    x = np.linspace(-100, 100, 400_000, dtype=np.float32).reshape(-1, 5)
    fast = rewritten(model)
    assert operators(fast) == ["Relu", "Abs", "Sigmoid", "Log", "Sub", "MatMul"]
    expected = torch.nn.functional.softplus(torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(run(fast, {"x": x})[0], expected, atol=1e-6, rtol=0)
    assert operators(rewritten(model, optimize=False)) == operators(model)


def test_the_fast_softplus_has_its_limits() -> None:
    x = np.array([[-np.inf, -1e30, 1e30, 0, 0], [np.nan] * 5], np.float32)
    (found,) = run(rewritten(softplus(PRODUCT, threshold=20)), {"x": x})
    np.testing.assert_array_equal(found[0, :3], np.array([0, 0, 1e30], np.float32))
    assert np.isnan(found[1]).all()


def test_a_softplus_with_a_low_threshold_is_left_alone() -> None:
    model = softplus(PRODUCT, threshold=2)
    x = np.array([[1.999, 2.001, 0, -1, 1]], np.float32)
    np.testing.assert_allclose(run(rewritten(model), {"x": x})[0], run(model, {"x": x})[0], atol=1e-6)


LOGARITHM = helper.make_node("Log", ["h"], ["y"])


@pytest.mark.parametrize("model", [softplus(LOGARITHM), softplus(LOGARITHM, threshold=20)], ids=["plain", "torch"])
def test_a_softplus_whose_logarithm_is_taken_keeps_its_digits(model: onnx.ModelProto) -> None:
    """As the scale of a likelihood."""
    x = np.linspace(-80, 30, 100_000, dtype=np.float32).reshape(-1, 5)
    expected = torch.nn.functional.softplus(torch.from_numpy(x).double()).log().numpy()
    np.testing.assert_allclose(run(rewritten(model), {"x": x})[0], expected, atol=1e-6, rtol=1e-6)


def for_integers(model: onnx.ModelProto) -> onnx.ModelProto:
    return ir.to_proto(rewrite_for_integers(ir.from_proto(model)))


def test_the_coarse_softplus_is_off_by_0_0029_at_most_and_exact_where_it_is_large_or_small() -> None:
    fast = rewritten(softplus(PRODUCT))
    assert "Log" in operators(fast)
    coarse = for_integers(fast)
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
        softplus(PRODUCT, outputs=("y", "h")),
        softplus(PRODUCT, helper.make_node("Mul", ["h", "y"], ["scaled"]), outputs=("scaled",)),
        softplus(helper.make_node("MatMul", ["w", "h"], ["y"])),
        softplus(helper.make_node("MatMul", ["h", "x"], ["y"])),
        softplus(helper.make_node("Gemm", ["x", "w", "h"], ["y"])),
    ],
    ids=["output", "scale", "weight", "by no weight", "bias"],
)
def test_a_softplus_that_is_read_by_more_than_products_stays_exact(model: onnx.ModelProto) -> None:
    for made in (rewritten(model), for_integers(rewritten(model))):
        assert operators(made) == operators(model)


def gemm(x: str, weight: str, bias: str, out: str) -> onnx.NodeProto:
    return helper.make_node("Gemm", [x, weight, bias], [out], alpha=1.0, beta=1.0, transA=0, transB=1)


def test_a_neg_is_folded_into_the_weights_bit_for_bit() -> None:
    nodes = [gemm("x", "w", "b", "product"), helper.make_node("Neg", ["product"], ["y"])]
    model = graph(nodes, {"x": (7,)}, ["y"], w=weights(5, 7), b=weights(5))
    fast = rewritten(model)
    assert operators(fast) == ["Gemm"]
    x = weights(33, 7, seed=1)
    np.testing.assert_array_equal(run(fast, {"x": x})[0], run(model, {"x": x})[0])


def test_a_neg_is_folded_into_a_transposed_convolution_bit_for_bit() -> None:
    deconvolution = helper.make_node("ConvTranspose", ["x", "w", "b"], ["maps"], strides=[2, 2], pads=[1, 1, 1, 1])
    nodes = [deconvolution, helper.make_node("Neg", ["maps"], ["y"])]
    model = graph(nodes, {"x": (3, 4, 5)}, ["y"], w=weights(3, 2, 3, 3), b=weights(2))
    fast = rewritten(model)
    assert operators(fast) == ["ConvTranspose"]
    x = weights(7, 3, 4, 5, seed=1)
    np.testing.assert_array_equal(run(fast, {"x": x})[0], run(model, {"x": x})[0])


@pytest.mark.parametrize(("operator", "left"), [("Neg", ["Gemm", "Reshape"]), ("Relu", ["Gemm", "Relu", "Reshape"])])
def test_relu_and_neg_move_before_a_reshape_bit_for_bit(operator: str, left: list[str]) -> None:
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


def test_a_shared_reshape_is_left_alone() -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["maps"]),
        helper.make_node("Relu", ["maps"], ["y"]),
        helper.make_node("Exp", ["maps"], ["z"]),
    ]
    model = graph(nodes, {"x": (6,)}, ["y", "z"], shape=np.array([-1, 2, 3]))
    assert operators(rewritten(model)) == ["Reshape", "Relu", "Exp"]


def test_shared_weights_are_not_negated() -> None:
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


def test_a_reader_of_the_first_head_may_come_before_the_second_head() -> None:
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
def test_heads_that_do_not_fit_together_are_not_joined(model: onnx.ModelProto) -> None:
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
def test_sums_of_aligned_rows_are_not_padded(width: int, axis: int) -> None:
    assert operators(rewritten(total(width, axis))) == ["ReduceSum"]


def test_sums_of_integers_are_left_alone() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.INT64),
        helper.make_node("ReduceSum", ["whole", "axes"], ["y"], keepdims=0),
    ]
    model = graph(nodes, {"x": (50,)}, ["y"], axes=np.array([-1], np.int64))
    assert operators(rewritten(onnx.shape_inference.infer_shapes(model))) == ["Cast", "ReduceSum"]


# Transposed convolutions

SMALL = ["Conv", "Relu", "Reshape", "MatMul", "Reshape"]
LAST = ["Conv", "Relu", "Conv", "Conv", "Relu", "Conv", "Add", "DepthToSpace"]


@dataclasses.dataclass(frozen=True)
class Layer:
    """A transposed convolution of square images; it doubles them exactly, if nothing else is said."""

    channels: int
    kernel: int = 3
    pad: int = 1
    more: int = 1
    stride: int = 2
    dilation: int = 1
    group: int = 1
    bias: bool = True

    def node(self, number: int, takes: str, gives: str) -> onnx.NodeProto:
        return helper.make_node(
            "ConvTranspose",
            [takes, f"w{number}", *([f"b{number}"] if self.bias else [])],
            [gives],
            strides=[self.stride] * 2,
            pads=[self.pad] * 4,
            output_padding=[self.more] * 2,
            dilations=[self.dilation] * 2,
            group=self.group,
        )


def decoder(image: tuple[int, int, int], layers: Sequence[Layer], *, last: bool) -> onnx.ModelProto:
    """Layers with a Relu behind each, but for the last one of all if there is one."""
    nodes, tensors, read = [], {}, image[0]
    for number, layer in enumerate(layers):
        nodes.append(layer.node(number, f"x{number}" if number else "x", f"maps{number}"))
        nodes.append(helper.make_node("Relu", [f"maps{number}"], [f"x{number + 1}"]))
        tensors[f"w{number}"] = weights(read, layer.channels // layer.group, layer.kernel, layer.kernel, seed=number)
        tensors[f"b{number}"] = weights(layer.channels, seed=10 + number)
        read = layer.channels
    if last:
        nodes.pop()
    model = graph(nodes, {"x": image}, [nodes[-1].output[0]], **tensors)
    return onnx.shape_inference.infer_shapes(model)


def assert_the_same(fast: onnx.ModelProto, model: onnx.ModelProto, image: tuple[int, int, int]) -> None:
    x = weights(5, *image, seed=20)
    (found,), (expected,) = run(fast, {"x": x}), run(model, {"x": x})
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    apart = np.concatenate([run(fast, {"x": row[None]})[0] for row in x])
    np.testing.assert_array_equal(found, apart, err_msg="a row must not depend on its batch")


DOUBLINGS = [Layer(16, 2, 0, 0), Layer(16), Layer(16, 4, 1, 0), Layer(16, 5, 2), Layer(16, 6, 2, 0)]
OTHERS = [Layer(16, 3, 1, 0), Layer(16, 3, 0, 0), Layer(16, 3, 0), Layer(16, 4, 2), Layer(16, 5, 1, 0)]


@pytest.mark.parametrize("layer", DOUBLINGS + OTHERS)
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 2)])
def test_a_hidden_layer_of_a_small_image_is_a_convolution(layer: Layer, size: tuple[int, int]) -> None:
    image = (64, *size)
    model = decoder(image, [layer], last=False)
    fast = rewritten(model)
    assert operators(fast) == SMALL
    assert_the_same(fast, model, image)
    assert operators(rewritten(model, optimize=False)) == ["ConvTranspose", "Relu"]


@pytest.mark.parametrize("second", DOUBLINGS)
@pytest.mark.parametrize("first", DOUBLINGS)
def test_the_last_two_layers_interleave_only_their_output(first: Layer, second: Layer) -> None:
    image = (128, 3, 2)
    model = decoder(image, [first, dataclasses.replace(second, channels=3)], last=True)
    fast = rewritten(model)
    assert operators(fast) == LAST
    assert_the_same(fast, model, image)
    assert operators(rewritten(model, optimize=False)) == ["ConvTranspose", "Relu", "ConvTranspose"]


def test_of_three_layers_the_last_two_are_joined() -> None:
    image = (32, 4, 3)
    model = decoder(image, [Layer(32), Layer(8), Layer(1)], last=True)
    fast = rewritten(model)
    assert operators(fast) == SMALL + LAST
    assert_the_same(fast, model, image)


def test_odd_sizes_are_exact() -> None:
    image = (32, 4, 4)
    model = decoder(image, [Layer(32, more=0), Layer(16), Layer(1)], last=True)  # 7, 14 and 28 pixels
    fast = rewritten(model)
    assert operators(fast) == SMALL + LAST
    assert_the_same(fast, model, image)


def test_the_neg_of_an_exact_sigmoid_is_folded_into_the_convolutions() -> None:
    image = (6, 3, 2)
    model = decoder(image, [Layer(16), Layer(1)], last=True)
    model.graph.node.extend(
        [
            helper.make_node("Reshape", [model.graph.output[0].name, "shape"], ["flat"]),
            helper.make_node("Sigmoid", ["flat"], ["y"]),
        ]
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, 96]), "shape"))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 96]))
    model = onnx.shape_inference.infer_shapes(model)
    assert operators(rewritten(model)) == [*LAST, "Reshape", "Exp", "Add", "Reciprocal"]


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (Layer(16), 16),  # interleaving would be more work than the layer
        (Layer(16, stride=3), 3),
        (Layer(16, stride=1, more=0), 3),
        (Layer(16, dilation=2), 3),
        (Layer(16, group=2), 3),
        (Layer(16, bias=False), 3),
        (Layer(16, 2, 2, 0), 4),  # it leaves out the last of what it reads, as a convolution cannot
    ],
)
def test_hidden_layers_of_other_kinds_are_left_alone(layer: Layer, size: int) -> None:
    assert operators(rewritten(decoder((64, size, size), [layer], last=False))) == ["ConvTranspose", "Relu"]


def test_a_last_layer_with_more_work_than_the_one_before_is_left_alone() -> None:
    image = (32, 8, 8)  # of which only the last layers could be rewritten
    model = decoder(image, [Layer(16), Layer(8)], last=True)
    assert operators(rewritten(model)) == LAST
    model = decoder(image, [Layer(16), Layer(9)], last=True)
    assert operators(rewritten(model)) == ["ConvTranspose", "Relu", "ConvTranspose"]


@pytest.mark.parametrize(
    "layers", [[Layer(16, more=0), Layer(3)], [Layer(16), Layer(3, more=0)], [Layer(16), Layer(4, group=2)]]
)
def test_last_layers_that_do_not_double_exactly_are_left_alone(layers: list[Layer]) -> None:
    model = decoder((64, 9, 9), layers, last=True)
    assert operators(rewritten(model)) == ["ConvTranspose", "Relu", "ConvTranspose"]


def test_layers_of_unknown_size_are_left_alone() -> None:
    model = decoder((64, 3, 2), [Layer(16), Layer(3)], last=True)
    del model.graph.value_info[:]
    assert operators(rewritten(model)) == ["ConvTranspose", "Relu", "ConvTranspose"]


@pytest.mark.parametrize("last", [False, True])
def test_layers_whose_intermediate_values_are_used_elsewhere_are_left_alone(last: bool) -> None:
    model = decoder((64, 3, 2), [Layer(16), Layer(3)] if last else [Layer(16)], last=last)
    model.graph.output.append(helper.make_tensor_value_info("maps0", onnx.TensorProto.FLOAT, None))
    assert "Conv" not in operators(rewritten(model))


@pytest.mark.parametrize("name", ["w0", "b0", "w1", "b1"])
def test_shared_weights_are_left_alone(name: str) -> None:
    model = decoder((64, 9, 9), [Layer(16), Layer(3)], last=True)
    model.graph.node.append(helper.make_node("Neg", [name], ["other"]))
    model.graph.output.append(helper.make_tensor_value_info("other", onnx.TensorProto.FLOAT, None))
    assert operators(rewritten(model))[:3] == ["ConvTranspose", "Relu", "ConvTranspose"]


@pytest.mark.parametrize(
    "attributes",
    [
        {"output_padding": [1, 1], "pads": [1, 1, 1, 1]},  # with stride 1, which is what none means
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 2], "output_shape": [6, 6]},
    ],
)
def test_layers_with_other_strides_or_padding_are_left_alone(attributes: dict[str, object]) -> None:
    model = decoder((64, 3, 3), [Layer(16)], last=False)
    del model.graph.node[0].attribute[:], model.graph.value_info[:]
    model.graph.node[0].attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    model = onnx.shape_inference.infer_shapes(model)
    assert operators(rewritten(model)) == ["ConvTranspose", "Relu"]
