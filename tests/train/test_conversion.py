"""From a traced program to ONNX: what the exporter itself cannot write, or writes less accurately."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnxscript import ir
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as attention

from edgevae.train import TraceError
from edgevae.train.conversion import DEFAULT_OPSET, convert
from edgevae.train.tracing import trace

WIDTH = 64
MASK = torch.tensor([[True, False, False, False], [True, True, False, False], [False] * 4, [True] * 4])


class Network(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Tensor], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.function, self.layer = function, layer
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.linspace(0.5, 1.5, parameter.numel()).reshape(parameter.shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def converted(module: nn.Module) -> onnx.ModelProto:
    traced = trace(module.eval(), (torch.rand(3, WIDTH),), (0,))
    return ir.to_proto(convert(traced, DEFAULT_OPSET, ["x"], ["y"]))


def run(model: onnx.ModelProto, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs: list[NDArray[np.float32]] = session.run(None, {"x": x.numpy()})
    return torch.from_numpy(outputs[0])


def square(x: Tensor) -> Tensor:
    return x.unflatten(1, (4, 16))


def heads(x: Tensor) -> Tensor:
    return x.unflatten(1, (4, 4, 4))


@pytest.mark.parametrize(
    "function",
    [
        lambda _, x: attention(square(x), square(x) * 2, square(x)),
        lambda _, x: attention(square(x), square(x), square(x), scale=2.0),
        lambda _, x: attention(square(x), square(x), square(x), is_causal=True),
        lambda _, x: attention(square(x), square(x), square(x), attn_mask=MASK),
        lambda _, x: attention(square(x), square(x), square(x), attn_mask=MASK.float()),
        lambda _, x: attention(heads(x), heads(x), heads(x)),
        lambda _, x: attention(heads(x), heads(x)[:, :2], heads(x)[:, :2], enable_gqa=True),
        lambda _, x: attention(*[x.unflatten(1, (2, 2, 4, 4))] * 3),
        lambda _, x: attention(x, torch.eye(WIDTH), torch.eye(WIDTH)),
    ],
)
def test_attention_is_exported_for_any_number_of_axes_and_any_mask(function: Callable[[Any, Tensor], Tensor]) -> None:
    network = Network(function)
    model = converted(network)
    for rows in (1, 2, 5):
        x = torch.rand(rows, WIDTH)
        torch.testing.assert_close(run(model, x), network(x), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.LayerNorm(WIDTH), (WIDTH,)),
        (nn.LayerNorm((8, 8)), (1, 8, 8)),
        (nn.LayerNorm((4, 16), elementwise_affine=False), (4, 16)),
        (nn.GroupNorm(2, 4), (4, 4, 4)),
        (nn.GroupNorm(1, 4, affine=False), (4, 16)),
        (nn.GroupNorm(4, WIDTH), (WIDTH,)),
        (nn.InstanceNorm1d(4), (4, 16)),
        (nn.InstanceNorm2d(4, affine=True), (4, 4, 4)),
        (nn.InstanceNorm2d(4, affine=True, track_running_stats=True), (4, 4, 4)),
        (nn.BatchNorm1d(WIDTH), (WIDTH,)),
    ],
)
def test_norms_are_as_good_as_float32_allows_on_constant_and_on_shifted_rows(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    network = Network(lambda net, x: net.layer(x.unflatten(1, shape)), layer)
    model = converted(network)
    for rows, x in ((1, torch.rand(1, WIDTH)), (2, torch.full((2, WIDTH), 0.7)), (5, 100 + torch.rand(5, WIDTH))):
        given = run(model, x)
        exact = network.double()(x.double())
        network.float()
        assert given.shape == (rows, *shape)
        tolerance = 2e-6 if getattr(layer, "running_mean", None) is None else 2e-5  # folded into one product
        torch.testing.assert_close(given.double(), exact, atol=tolerance, rtol=2e-6)


def test_an_operator_without_onnx_form_is_an_error_with_the_users_line(capfd: pytest.CaptureFixture[str]) -> None:
    network = Network(lambda _, x: torch.special.bessel_j0(x))
    with pytest.raises(TraceError) as caught:
        converted(network)
    message = str(caught.value)
    line = network.function.__code__.co_firstlineno
    assert message.startswith(f"line {line} of test_conversion.py, `network = Network(")
    assert "bessel_j0, which has no ONNX form" in message
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")
