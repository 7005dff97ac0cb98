"""Transposed convolutions with stride 2, rewritten as convolutions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.export.graphs import graph, operators, rewritten, run, weights

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
def test_the_last_two_layers_put_together_their_output_alone(first: Layer, second: Layer) -> None:
    image = (128, 3, 2)
    model = decoder(image, [first, dataclasses.replace(second, channels=3)], last=True)
    fast = rewritten(model)
    assert operators(fast) == LAST
    assert_the_same(fast, model, image)
    assert operators(rewritten(model, optimize=False)) == ["ConvTranspose", "Relu", "ConvTranspose"]


def test_of_three_layers_it_is_the_last_two_that_become_one() -> None:
    image = (32, 4, 3)
    model = decoder(image, [Layer(32), Layer(8), Layer(1)], last=True)
    fast = rewritten(model)
    assert operators(fast) == SMALL + LAST
    assert_the_same(fast, model, image)


def test_odd_sizes_are_made_exactly() -> None:
    image = (32, 4, 4)
    model = decoder(image, [Layer(32, more=0), Layer(16), Layer(1)], last=True)  # 7, 14 and 28 pixels
    fast = rewritten(model)
    assert operators(fast) == SMALL + LAST
    assert_the_same(fast, model, image)


def test_the_sign_of_an_exact_sigmoid_goes_into_the_convolutions() -> None:
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
        (Layer(16), 16),  # putting it together would be more work than the layer is
        (Layer(16, stride=3), 3),
        (Layer(16, stride=1, more=0), 3),
        (Layer(16, dilation=2), 3),
        (Layer(16, group=2), 3),
        (Layer(16, bias=False), 3),
        (Layer(16, 2, 2, 0), 4),  # it leaves out the last of what it reads, as a convolution cannot
    ],
)
def test_hidden_layers_of_other_kinds_stay_as_they_are(layer: Layer, size: int) -> None:
    assert operators(rewritten(decoder((64, size, size), [layer], last=False))) == ["ConvTranspose", "Relu"]


def test_a_last_layer_that_is_more_work_than_the_one_before_stays_as_it_is() -> None:
    image = (32, 8, 8)  # of which only the last layers could be rewritten
    model = decoder(image, [Layer(16), Layer(8)], last=True)
    assert operators(rewritten(model)) == LAST
    model = decoder(image, [Layer(16), Layer(9)], last=True)
    assert operators(rewritten(model)) == ["ConvTranspose", "Relu", "ConvTranspose"]


@pytest.mark.parametrize(
    "layers", [[Layer(16, more=0), Layer(3)], [Layer(16), Layer(3, more=0)], [Layer(16), Layer(4, group=2)]]
)
def test_last_layers_that_do_not_double_exactly_stay_as_they_are(layers: list[Layer]) -> None:
    model = decoder((64, 9, 9), layers, last=True)
    assert operators(rewritten(model)) == ["ConvTranspose", "Relu", "ConvTranspose"]


def test_layers_whose_sizes_are_not_known_stay_as_they_are() -> None:
    model = decoder((64, 3, 2), [Layer(16), Layer(3)], last=True)
    del model.graph.value_info[:]
    assert operators(rewritten(model)) == ["ConvTranspose", "Relu", "ConvTranspose"]


@pytest.mark.parametrize("last", [False, True])
def test_layers_whose_inside_others_use_stay_as_they_are(last: bool) -> None:
    model = decoder((64, 3, 2), [Layer(16), Layer(3)] if last else [Layer(16)], last=last)
    model.graph.output.append(helper.make_tensor_value_info("maps0", onnx.TensorProto.FLOAT, None))
    assert "Conv" not in operators(rewritten(model))


@pytest.mark.parametrize("name", ["w0", "b0", "w1", "b1"])
def test_weights_that_others_use_stay_as_they_are(name: str) -> None:
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
def test_layers_whose_strides_or_pads_are_said_in_other_ways_stay_as_they_are(attributes: dict[str, object]) -> None:
    model = decoder((64, 3, 3), [Layer(16)], last=False)
    del model.graph.node[0].attribute[:], model.graph.value_info[:]
    model.graph.node[0].attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    model = onnx.shape_inference.infer_shapes(model)
    assert operators(rewritten(model)) == ["ConvTranspose", "Relu"]
