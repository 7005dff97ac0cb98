"""Bernoulli: the reference's likelihood."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions.utils import broadcast_all

from .base import Likelihood, uniform_of


class Bernoulli(Likelihood):
    """p(x|z) = Bernoulli(loc_img); grey-scale values in [0, 1] are scored as they are, as in Pyro's example."""

    parameter_names: ClassVar[tuple[str, ...]] = ("loc_img",)
    discrete: ClassVar[bool] = True

    def parameters_of(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """Return `loc_img`, the probability of each value to be 1."""
        return (torch.sigmoid(outputs),)

    def distribution(self, parameters: tuple[Tensor, ...]) -> TorchDistribution:
        """Return Bernoulli(loc_img); not validated, because grey-scale values are not 0 or 1."""
        return dist.Bernoulli(parameters[0], validate_args=False)

    def distribution_to_fit(self, outputs: Tensor) -> TorchDistribution:
        """Return Bernoulli(loc_img), from its logits."""
        return BernoulliOfLogits(logits=outputs, validate_args=False)

    def draw(self, parameters: tuple[Tensor, ...], eps: Tensor) -> Tensor:
        """Return 0 or 1."""
        return (uniform_of(eps) < parameters[0]).to(eps.dtype)


class BernoulliOfLogits(dist.Bernoulli):  # type: ignore[misc]  # Pyro has no types
    """Pyro's, with a log-probability that takes a third of the time; to be made of logits."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of values from 0 to 1, as PyTorch's, to rounding; its gradient is the same."""
        log_prob: Tensor = _LogProb.apply(*broadcast_all(self.logits, value))
        return log_prob


class _LogProb(torch.autograd.Function):
    """x l - softplus(l), where softplus(l) = max(l, 0) - log(sigmoid(|l|)): PyTorch's own is not vectorized on the CPU.

    The gradient is written out, x - sigmoid(l), because that of the absolute value would be wrong at a logit of 0.
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
