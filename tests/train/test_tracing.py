"""From a module to a program with a dynamic batch axis, and the errors where there is none."""

from __future__ import annotations

import builtins
import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgevae.train import TraceError
from edgevae.train.tracing import trace

WIDTH = 64


class Network(nn.Module):
    """A user's network: a function of itself and a batch."""

    def __init__(self, function: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.layer = nn.Linear(WIDTH, 8)
        self.factors = nn.Parameter(torch.linspace(-1, 1, 32).reshape(8, 4))
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def batch(rows: int) -> Tensor:
    return torch.rand(rows, WIDTH, generator=torch.Generator().manual_seed(rows))


def assert_dynamic(module: nn.Module, *more: Tensor, axes: tuple[int | None, ...] = (0,)) -> None:
    program = trace(module.eval(), (batch(3), *more), axes).module()
    for rows in (1, 2, 5, WIDTH):
        torch.testing.assert_close(program(batch(rows), *more), module(batch(rows), *more))


@pytest.mark.parametrize(
    "function",
    [
        lambda net, x: net.layer(x.reshape(len(x), WIDTH)),
        lambda net, x: net.layer(x) + torch.zeros(len(x), 8),
        lambda net, x: net.layer(x) + net.factors.flatten()[:8].repeat(len(x), 1),
        lambda net, x: net.layer(x.view(x.size(0), -1)),
        lambda net, x: net.layer(x.view(int(x.size(0)), -1)),
        lambda net, x: net.layer(x.reshape(int(x.shape[0]), WIDTH)),
        lambda net, x: net.layer(x) + torch.zeros(int(x.shape[0]), 8),
        lambda net, x: net.layer(x) * float(x.shape[0]),
        lambda net, x: net.layer(x) * math.sqrt(x.shape[0]),
        lambda net, x: net.layer(x.reshape(torch.tensor(x.shape).prod().item() // WIDTH, WIDTH)),
        lambda net, x: net.layer(x.reshape(-1, 8).tanh().reshape(-1, WIDTH)),
        lambda net, x: torch.einsum("bhw,hk,wl->bkl", x.unflatten(1, (8, 8)), net.factors, net.factors),
        lambda net, x: torch.einsum("bi,bj,bk,k->bij", x, x, x, net.layer.weight[0]),
    ],
)
def test_the_batch_size_stays_dynamic(function: Callable[[Any, Tensor], Any]) -> None:
    assert_dynamic(Network(function))


def test_any_axis_may_be_the_batch_or_none() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            return x @ weight

    program = trace(Pair(), (batch(3).T.contiguous(), torch.rand(3, 5)), (1, 0)).module()
    assert program(batch(7).T, torch.rand(7, 5)).shape == (WIDTH, 5)
    assert_dynamic(Pair(), torch.rand(WIDTH, 5), axes=(0, None))


@pytest.mark.parametrize(
    ("function", "construct", "remedy"),
    [
        (lambda net, x: net.layer(x.reshape(3, -1)), "x.reshape(3, -1)", "Write x.shape[0] or -1"),
        (lambda net, x: net.layer(x.reshape(64, -1).T), "x.reshape(64, -1).T", "Write x.shape[0] or -1"),
        (lambda net, x: net.layer(x.reshape(64, 64)), "x.reshape(64, 64)", "Write x.shape[0] or -1"),
        (lambda net, x: net.layer(x.reshape(-1, 2, 64)), "x.reshape(-1, 2, 64)", "works for some batch sizes only"),
        (lambda net, x: net.layer(x) + torch.ones(3, 8), "torch.ones(3, 8)", "works for some batch sizes only"),
        (lambda net, x: torch.stack([net.layer(r) for r in x]), "for r in x", "in place of a loop over its rows"),
        (lambda _, x: torch.stack([x[i] for i in range(len(x))]), "range(len(x))", "in place of a loop"),
        (lambda net, x: net.layer(x if x.shape[0] % 2 else -x), "x.shape[0] % 2", "works for some batch sizes only"),
        (lambda net, x: net.layer(x if x.mean() > 0 else -x), "if x.mean() > 0", "torch.where(condition, a, b)"),
        (lambda net, x: net.layer(x) * math.exp(x.mean()), "math.exp(x.mean())", "keep numbers in tensors"),
        (lambda net, x: net.layer(x[x.sum(1).tolist()[0] > 3 :]), ".tolist()[0]", "keep numbers in tensors"),
        (lambda net, x: net.layer(torch.tensor(np.sort(x.numpy()).searchsorted(1))), "np.sort(x.numpy())", "NumPy"),
        (lambda net, x: net.layer(x[:, 1:]), "x[:, 1:]", "fails: RuntimeError"),
        (lambda _, x: x + torch.randn_like(x), "torch.randn_like", "aten.randn_like, which draws random numbers"),
        (lambda _, x: torch.bernoulli(x), "torch.bernoulli", "Noise must be an input"),
        (lambda _, x: functional.dropout(x), "functional.dropout(x)", "training=self.training"),
    ],
)
def test_what_cannot_be_traced_is_an_error_that_shows_the_users_line_and_a_remedy(
    function: Callable[[Any, Tensor], Any], construct: str, remedy: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TraceError) as caught:
        trace(Network(function).eval(), (batch(3),), (0,))
    message = str(caught.value)
    number = function.__code__.co_firstlineno
    assert message.startswith(f"line {number} of test_tracing.py, `")
    assert construct in message
    assert remedy in message
    assert "\n" not in message
    assert "\x1b" not in message
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("layer", "operator"), [(nn.BatchNorm1d(WIDTH), r"aten\.batch_norm"), (nn.Dropout(0.5), r"aten\.dropout")]
)
def test_a_layer_in_training_mode_is_refused_and_passes_in_evaluation_mode(layer: nn.Module, operator: str) -> None:
    network = Network(lambda net, x: net.norm(x), norm=layer)
    with pytest.raises(TraceError, match=rf"{operator} in training mode. Call \.eval\(\)"):
        trace(network.train(), (batch(3),), (0,))
    assert_dynamic(network)


def test_a_norm_without_running_statistics_is_refused_with_a_remedy_that_helps() -> None:
    network = Network(lambda net, x: net.norm(x), norm=nn.BatchNorm1d(WIDTH, track_running_stats=False))
    with pytest.raises(TraceError, match=r"without running statistics.*track_running_stats=True") as caught:
        trace(network.eval(), (batch(3),), (0,))
    assert "eval()" not in str(caught.value)


def test_attention_is_random_with_dropout_alone() -> None:
    def attention(dropout: float) -> nn.Module:
        def attend(_net: Any, x: Tensor) -> Tensor:
            rows = x[:, None]
            return functional.scaled_dot_product_attention(rows, rows, rows, dropout_p=dropout)[:, 0]

        return Network(attend)

    assert_dynamic(attention(0.0))
    with pytest.raises(TraceError, match=r"aten\.scaled_dot_product_attention, which draws random numbers"):
        trace(attention(0.5).eval(), (batch(3),), (0,))


def test_a_trace_leaves_python_and_pytorch_as_they_were() -> None:
    length, einsum = builtins.len, torch.backends.opt_einsum.enabled
    for function in (lambda net, x: net.layer(x), lambda net, x: net.layer(x.reshape(3, -1))):
        try:
            trace(Network(function).eval(), (batch(3),), (0,))
        except TraceError:
            assert "reshape" in str(function.__code__.co_names)
        assert builtins.len is length
        assert torch.backends.opt_einsum.enabled == einsum


def test_threads_trace_one_after_another() -> None:
    length, failed = builtins.len, []

    def run() -> None:
        try:
            for _ in range(3):
                assert_dynamic(Network(lambda net, x: net.layer(x.reshape(len(x), WIDTH))))
        except Exception as error:  # noqa: BLE001 - told by the main thread
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert builtins.len is length
