"""Distributions that Pyro lacks, or that are faster or more accurate than Pyro's.

`Gaussian` and `BernoulliOfLogits` are Pyro's to rounding, with fewer operations and hand-written gradients: for
training.
"""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions.utils import broadcast_all, clamp_probs

_TAYLOR_WINDOW = (0.43, 0.57)
_SMALL_LOGIT = 1e-2  # below it the continuous Bernoulli's density is a straight line to float32's precision
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


class ContinuousBernoulli(dist.ContinuousBernoulli):  # type: ignore[misc]  # Pyro has no types
    """CB(probs), whose mean, normaliser and draws are accurate where probs is near 0.5.

    There the normaliser and the mean are 0/0, and a Taylor expansion takes their place. PyTorch's window for it, 0.499
    to 0.501, is too narrow for float32: the mean is off by 3e-3 just outside. From 0.43 to 0.57 both sides stay within
    2e-6 of the exact value.

    Args:
        probs: In [0, 1], any shape.
    """

    def __init__(self, probs: Tensor) -> None:
        super().__init__(probs, lims=_TAYLOR_WINDOW)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ContinuousBernoulli:
        """Return the distribution with `probs` of another shape."""
        return ContinuousBernoulli(self.probs.expand(batch_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Return draws, by the inverse of the distribution function."""
        return self.icdf(torch.rand(self._extended_shape(torch.Size(sample_shape)), device=self.probs.device))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return draws without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def icdf(self, value: Tensor) -> Tensor:
        """Return the inverse of F(x) = (exp(t x) - 1) / (exp(t) - 1), t the logit of probs."""
        logit = torch.logit(self.probs, eps=torch.finfo(self.probs.dtype).eps)
        flat = logit.abs() < _SMALL_LOGIT
        away = torch.where(flat, torch.ones_like(logit), logit)
        line = value + 0.5 * logit * value * (1 - value)
        return torch.where(flat, line, torch.log1p(value * torch.expm1(away)) / away)


class GreyLevels(TorchDistribution):
    """Equidistant values from 0 to 1, each with a probability. A value is scored as the nearest of them.

    Args:
        probs: Probabilities, shape `(..., levels)`, at least 2 levels; they sum to 1.
        logits: In their place, logarithms of them up to a constant.
    """

    arg_constraints = {"probs": constraints.simplex}  # noqa: RUF012 - as PyTorch declares it
    support = constraints.unit_interval

    def __init__(self, probs: Tensor | None = None, logits: Tensor | None = None) -> None:
        given: Any = probs if logits is None else logits
        self._probs, self._logits, self._levels = probs, logits, given.shape[-1]
        super().__init__(given.shape[:-1], validate_args=False)

    @property
    def probs(self) -> Tensor:
        """Probabilities, shape `(..., levels)`."""
        if self._probs is not None:
            return self._probs
        given: Any = self._logits
        return torch.softmax(given, dim=-1)

    @property
    def mean(self) -> Tensor:
        """The mean, shape `(...)`."""
        values = torch.linspace(0, 1, self._levels, dtype=self.probs.dtype, device=self.probs.device)
        return (self.probs * values).sum(-1).clamp(max=1)  # rounding must not lead out of [0, 1]

    def expand(self, batch_shape: Any, _instance: Any = None) -> GreyLevels:
        """Return the distribution with another batch shape."""
        probs, logits = (
            None if each is None else each.expand(*batch_shape, self._levels) for each in (self._probs, self._logits)
        )
        return GreyLevels(probs, logits)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return draws, by the inverse of the distribution function."""
        with torch.no_grad():
            below = self.probs.cumsum(-1)[..., :-1]  # the last one is 1, whatever its rounding says
            shape = self._extended_shape(torch.Size(sample_shape))
            uniform = torch.rand(shape, dtype=below.dtype, device=below.device)
            return (uniform[..., None] >= below).sum(-1).to(below.dtype) / (self._levels - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of the level that is nearest to a value, in nats."""
        if self._logits is not None:
            log_probs = self._logits - self._logits.logsumexp(-1, keepdim=True)
        else:
            log_probs = clamp_probs(self.probs).log()
        level = torch.round(value * (self._levels - 1)).long()[..., None]
        level, log_probs = torch.broadcast_tensors(level, log_probs)
        return log_probs.gather(-1, level[..., :1])[..., 0]
