"""Pyro's normal and Bernoulli distributions, with log-probabilities of fewer operations and hand-written gradients.

They equal Pyro's to rounding. Training uses them; evaluation and export use Pyro's own.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions.utils import broadcast_all

_LOG_NORMALISER = 0.5 * math.log(2 * math.pi)


class Gaussian(dist.Normal):
    """N(loc, scale²)."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density in nats, as PyTorch's, to rounding; its gradient is the same."""
        if self._validate_args:
            self._validate_sample(value)
        log_prob: Tensor = _NormalLogProb.apply(*broadcast_all(value, self.loc, self.scale))
        return log_prob


def log_normal(value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Return log N(value; loc, diag(scale²)) in nats, summed over the last axis, as `Gaussian` computes it.

    PyTorch squares `scale`, which overflows float32 sooner. These are plain operations, for graphs.
    """
    terms = -0.5 * ((value - loc) / scale).square() - scale.log() - _LOG_NORMALISER
    return terms.sum(-1)


def diagonal_normal(loc: Tensor, scale: Tensor) -> TorchDistribution:
    """Return N(loc, diag(scale²)): the last axis is an event."""
    return _event(Gaussian(loc, scale))


def standard_normal(shape: tuple[int, ...], like: Tensor) -> TorchDistribution:
    """Return N(0, I) of the dtype and on the device of `like`; the last axis is an event."""
    return _event(_Standard(like.new_zeros(shape), like.new_ones(shape)))


def _event(normal: Any) -> TorchDistribution:  # Pyro's have no types
    event: TorchDistribution = normal.to_event(1)
    return event


class _Standard(dist.Normal):
    """N(0, 1)."""

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        value, _ = torch.broadcast_tensors(value, self.loc)
        return value.square().mul_(-0.5).sub_(_LOG_NORMALISER)


class _NormalLogProb(torch.autograd.Function):
    """-t²/2 - log(scale) - log(2 pi)/2, where t = (value - loc) / scale.

    The gradient is written by hand: autograd would differentiate each operation of PyTorch's density.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(value, loc, scale)
        t = (value - loc).div_(scale)
        return scale.log().add_(_LOG_NORMALISER).addcmul_(t, t, value=0.5).neg_()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        value, loc, scale = ctx.saved_tensors
        (gradient,) = gradients
        of_value, of_loc, of_scale = ctx.needs_input_grad
        t = (value - loc) / scale
        by_loc = gradient * t / scale
        return (
            -by_loc if of_value else None,
            by_loc if of_loc else None,
            by_loc * t - gradient / scale if of_scale else None,
        )


class BernoulliOfLogits(dist.Bernoulli):  # type: ignore[misc]  # Pyro has no types
    """Pyro's `Bernoulli`, made from logits, with a faster log-probability."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of values from 0 to 1, as PyTorch's, to rounding; its gradient is the same."""
        log_prob: Tensor = _BernoulliLogProb.apply(*broadcast_all(self.logits, value))
        return log_prob


class _BernoulliLogProb(torch.autograd.Function):
    """x l - softplus(l), where softplus(l) = max(l, 0) - log(sigmoid(|l|)): PyTorch's own is not vectorized on the CPU.

    The gradient is written by hand, x - sigmoid(l): that of the absolute value would be wrong at a logit of 0.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(logits, value)
        return logits.abs().sigmoid_().log_().addcmul_(logits, value).sub_(logits.relu())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None]:
        logits, value = ctx.saved_tensors
        (gradient,) = gradients
        of_value = gradient * logits if ctx.needs_input_grad[1] else None
        return (value - logits.sigmoid()).mul_(gradient), of_value
