"""The lint: each thing that it must refuse, by name."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from export import GraphError
from export._lint import lint_onnx, lint_program
from export._programs import Program
from runtime import Signature, TensorSpec

ROWS = TensorSpec(name="x", dtype="float32", shape=("batch", 4))


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments: Tensor) -> Tensor:
        return self.function(*arguments)


def program(module: nn.Module) -> Program:
    return Program(module, Signature((ROWS,), (ROWS,)))


@pytest.mark.parametrize(
    ("module", "operator"),
    [
        (Function(lambda x: x + torch.randn_like(x)), "randn_like"),
        (Function(lambda x: x + torch.rand(4)), "rand"),
        (Function(torch.bernoulli), "bernoulli"),
        (Function(lambda x: torch.normal(x, 1.0)), "normal"),
        (Function(lambda x: torch.multinomial(x, 1).float()), "multinomial"),
    ],
)
def test_random_operators_in_a_program_are_refused_by_name(module: nn.Module, operator: str) -> None:
    with pytest.raises(GraphError, match=rf"encoder: aten\.{operator}.* draws random numbers"):
        lint_program("encoder", program(module).trace())


@pytest.mark.parametrize(("module", "operator"), [(nn.BatchNorm1d(4), "batch_norm"), (nn.Dropout(0.5), "dropout")])
def test_norms_and_dropout_are_refused_in_training_mode_and_pass_in_evaluation_mode(
    module: nn.Module, operator: str
) -> None:
    with pytest.raises(GraphError, match=rf"aten\.{operator}.* is in training mode; call \.eval\(\)"):
        lint_program("encoder", program(Function(module.train())).trace())
    lint_program("encoder", program(Function(module.eval())).trace())


def test_a_program_for_one_batch_size_is_refused() -> None:
    with pytest.raises(GraphError, match="Function cannot be traced with a dynamic batch axis"):
        program(Function(lambda x: x.reshape(3, 4) * 2)).trace()


def graph(
    nodes: list[onnx.NodeProto],
    shape: tuple[str | int, ...] = ("batch", 4),
    functions: tuple[onnx.FunctionProto, ...] = (),
) -> onnx.ModelProto:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    return helper.make_model(helper.make_graph(nodes, "graph", value[:1], value[1:]), functions=functions)


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
def test_operators_that_must_not_be_in_a_graph_are_refused_by_name(node: onnx.NodeProto, message: str) -> None:
    with pytest.raises(GraphError, match=f"encoder: {message}"):
        lint_onnx("encoder", graph([node]))


def test_a_random_operator_inside_a_branch_is_refused() -> None:
    branch = helper.make_graph(
        [helper.make_node("RandomUniformLike", ["x"], ["inside"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inside", TensorProto.FLOAT, ["batch", 4])],
    )
    node = helper.make_node("If", ["condition"], ["y"], then_branch=branch, else_branch=branch)
    with pytest.raises(GraphError, match="RandomUniformLike draws random numbers"):
        lint_onnx("encoder", graph([node]))


def test_a_random_operator_inside_a_function_is_refused() -> None:
    function = helper.make_function(
        "local",
        "noisy",
        ["x"],
        ["y"],
        [helper.make_node("RandomNormalLike", ["x"], ["y"])],
        [helper.make_opsetid("", 20)],
    )
    with pytest.raises(GraphError, match="RandomNormalLike draws random numbers"):
        lint_onnx("encoder", graph([helper.make_node("noisy", ["x"], ["y"], domain="local")], functions=(function,)))


@pytest.mark.parametrize(("shape", "size"), [((2, 4), "2"), ((), "no axis")])
def test_a_frozen_batch_axis_is_refused(shape: tuple[str | int, ...], size: str) -> None:
    with pytest.raises(GraphError, match=f"the batch axis of x is frozen at {size}"):
        lint_onnx("encoder", graph([helper.make_node("Relu", ["x"], ["y"])], shape))


def test_weights_in_another_file_are_refused() -> None:
    model = graph([helper.make_node("Relu", ["x"], ["y"])])
    model.graph.initializer.append(TensorProto(name="w", data_location=TensorProto.EXTERNAL))
    with pytest.raises(GraphError, match="w lies in another file"):
        lint_onnx("encoder", model)
