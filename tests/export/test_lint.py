"""The checks of graphs: each thing that they must refuse, by name."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

from edgevae import check_graph
from edgevae.export import GraphError
from edgevae.export.lint import lint_onnx


def graph(
    nodes: list[onnx.NodeProto],
    shape: tuple[str | int, ...] = ("batch", 4),
    functions: tuple[onnx.FunctionProto, ...] = (),
) -> onnx.ModelProto:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
    whole = helper.make_graph(nodes, "graph", value[:1], value[1:])
    return helper.make_model(whole, functions=functions, opset_imports=opsets, ir_version=10)


def test_a_plain_graph_passes() -> None:
    lint_onnx("encoder", graph([helper.make_node("Relu", ["x"], ["y"])]))


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (helper.make_node("RandomNormalLike", ["x"], ["y"]), "RandomNormalLike draws random numbers"),
        (helper.make_node("Bernoulli", ["x"], ["y"]), "Bernoulli draws random numbers"),
        (helper.make_node("Dropout", ["x"], ["y"]), "Dropout must not be"),
        (
            helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"], training_mode=1),
            "BatchNormalization is in training mode",
        ),
        (helper.make_node("Relu", ["x"], ["y"], domain="com.example"), "com.example::Relu is not a standard"),
    ],
)
def test_forbidden_operators_are_refused_by_name(node: onnx.NodeProto, message: str) -> None:
    with pytest.raises(GraphError, match=f"encoder: {message}"):
        lint_onnx("encoder", graph([node]))


def test_a_branch_is_refused() -> None:
    branch = helper.make_graph(
        [helper.make_node("RandomUniformLike", ["x"], ["inside"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inside", TensorProto.FLOAT, ["batch", 4])],
    )
    node = helper.make_node("If", ["condition"], ["y"], then_branch=branch, else_branch=branch)
    with pytest.raises(GraphError, match="If holds graphs within the graph"):
        lint_onnx("encoder", graph([node]))


def test_functions_of_the_graphs_own_are_refused() -> None:
    function = helper.make_function(
        "local",
        "noisy",
        ["x"],
        ["y"],
        [helper.make_node("RandomNormalLike", ["x"], ["y"])],
        [helper.make_opsetid("", 20)],
    )
    with pytest.raises(GraphError, match="encoder: defines operators of its own"):
        lint_onnx("encoder", graph([helper.make_node("noisy", ["x"], ["y"], domain="local")], functions=(function,)))


@pytest.mark.parametrize("operator", ["Loop", "Scan", "SequenceMap"])
def test_subgraphs_that_may_never_end_are_refused(operator: str) -> None:
    body = helper.make_graph([], "body", [], [])
    with pytest.raises(GraphError, match=f"encoder: {operator} holds graphs within the graph"):
        lint_onnx("encoder", graph([helper.make_node(operator, ["", "", "x"], ["y"], body=body)]))


def weighted(values: np.ndarray[Any, Any], *nodes: onnx.NodeProto) -> onnx.ModelProto:
    """A graph with nodes that take `w`."""
    model = graph(list(nodes))
    model.graph.initializer.append(numpy_helper.from_array(values, "w"))
    return model


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("values", "refused"),
    [
        ([0, np.nan], True),
        ([np.inf, 0], True),
        ([0, -np.inf], True),
        ([np.nan], True),
        ([-np.inf], False),
        ([0, 1, 2, 3], False),
    ],
)
def test_weights_that_are_not_finite_are_refused_but_not_a_single_infinity(
    dtype: type, values: list[float], refused: bool
) -> None:
    cast = helper.make_node("Cast", ["w"], ["v"], to=TensorProto.FLOAT)
    model = weighted(np.array(values, dtype), cast, helper.make_node("Add", ["x", "v"], ["y"]))
    with pytest.raises(GraphError, match="w holds NaN or infinity") if refused else contextlib.nullcontext():
        lint_onnx("encoder", model)


@pytest.mark.parametrize(
    ("operator", "sizes", "refused"),
    [
        ("Expand", [3, 784, 1, 4], False),
        ("Expand", [2**20, 2**20, 1, 1], True),
        ("Expand", [2**41, 1, 1], True),
        ("Tile", [1, 2**30], True),
        ("Pad", [0, 2, 0, 2], False),
        ("Pad", [0, 2**40, 0, 0], True),
    ],
)
def test_constants_that_ask_for_absurd_sizes_are_refused(operator: str, sizes: list[int], refused: bool) -> None:
    model = weighted(np.array(sizes, np.int64), helper.make_node(operator, ["x", "w"], ["y"]))
    with pytest.raises(GraphError, match=r"encoder: .*asks for more than") if refused else contextlib.nullcontext():
        lint_onnx("encoder", model)


def test_sizes_that_depend_on_the_batch_pass() -> None:
    for times, refused in (7, False), (2**30, True):
        model = weighted(
            np.array([times], np.int64),
            helper.make_node("Shape", ["x"], ["sizes"]),
            helper.make_node("Concat", ["w", "sizes"], ["larger"], axis=0),
            helper.make_node("Expand", ["x", "larger"], ["y"]),
        )
        with pytest.raises(GraphError, match="asks for more than") if refused else contextlib.nullcontext():
            lint_onnx("encoder", model)


def test_sizes_that_depend_on_values_of_the_data_are_refused() -> None:
    with pytest.raises(GraphError, match="how large NonZero is to be depends on more than the batch's size"):
        lint_onnx("encoder", graph([helper.make_node("NonZero", ["x"], ["y"])]))


def test_a_graph_that_grows_faster_than_the_batch_is_refused() -> None:
    turned = helper.make_node("Transpose", ["x"], ["turned"])
    with pytest.raises(GraphError, match="grows faster than the batch"):
        lint_onnx("encoder", graph([turned, helper.make_node("MatMul", ["x", "turned"], ["y"])]))


@pytest.mark.parametrize(("shape", "size"), [((2, 4), "2"), ((), "no axis")])
def test_a_frozen_batch_axis_is_refused(shape: tuple[str | int, ...], size: str) -> None:
    with pytest.raises(GraphError, match=f"the batch axis of x is frozen at {size}"):
        lint_onnx("encoder", graph([helper.make_node("Relu", ["x"], ["y"])], shape))


def test_weights_in_another_file_are_refused() -> None:
    model = graph([helper.make_node("Relu", ["x"], ["y"])])
    model.graph.initializer.append(TensorProto(name="w", data_location=TensorProto.EXTERNAL))
    with pytest.raises(GraphError, match="w lies in another file"):
        lint_onnx("encoder", model)


# Sizes of values


class Network(nn.Module):
    """A function of a batch of 1 x 8 x 8, with layers."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.function(x, *self.layers)
        return output


NETWORKS = {
    "shaped by the batch's size": Network(
        lambda x, up: up(x.view(x.shape[0], 4, 4, 4)).reshape(x.size(0), -1), nn.ConvTranspose2d(4, 2, 4, 2, 1)
    ),
    "zeros of the batch's size": Network(lambda x: torch.cat([x.flatten(1), torch.zeros(x.shape[0], 3)], 1)),
    "weights repeated for each row": Network(
        lambda x, table: table.weight[None].expand(x.shape[0], -1, -1).flatten(1) + x.flatten(1)[:, :1],
        nn.Embedding(4, 4),
    ),
    "enlarged": Network(
        lambda x, conv: conv(functional.interpolate(x, scale_factor=2.0)).mean((2, 3)), nn.Conv2d(1, 4, 3)
    ),
    "attentive": Network(
        lambda x, layer: layer(x[:, 0]).flatten(1), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_growth_is_known_for_networks_of_all_kinds(name: str) -> None:
    x = torch.rand(3, 1, 8, 8)
    traced = torch.export.export(NETWORKS[name].eval(), (x,), dynamic_shapes=({0: Dim("batch")},))
    with contextlib.redirect_stdout(io.StringIO()):  # the exporter prints its progress
        program = torch.onnx.export(
            traced, dynamo=True, external_data=False, opset_version=20, optimize=False, verbose=False
        )
    assert program is not None
    versions = check_graph(program.model_proto.SerializeToString(), "network.onnx")
    assert versions.opset == 20
