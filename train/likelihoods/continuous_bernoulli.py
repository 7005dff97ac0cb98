"""Continuous Bernoulli: a density on [0, 1] for grey-scale values."""

from __future__ import annotations

from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from .base import Likelihood, uniform_of

_TAYLOR_WINDOW = (0.43, 0.57)
_FLAT = 1e-2  # of the logit: below it the density is a straight line to float32's precision


class ContinuousBernoulli(Likelihood):
    """p(x|z) = CB(probs), the Bernoulli normalised on [0, 1] (Loaiza-Ganem & Cunningham, 2019).

    Its normaliser and its mean are 0/0 at probs = 0.5, where a Taylor expansion takes their place. PyTorch's window for
    it, 0.499 to 0.501, is too narrow for float32: the mean is off by 3e-3 just outside. From 0.43 to 0.57 both sides
    stay within 2e-6 of the exact value.
    """

    parameter_names: ClassVar[tuple[str, ...]] = ("loc_img", "probs")

    def parameters_of(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """Return `loc_img`, the mean, and `probs`, the distribution's parameter."""
        probs = torch.sigmoid(outputs)
        return dist.ContinuousBernoulli(probs, lims=_TAYLOR_WINDOW).mean, probs

    def distribution(self, parameters: tuple[Tensor, ...]) -> TorchDistribution:
        """Return CB(probs)."""
        return dist.ContinuousBernoulli(parameters[1], lims=_TAYLOR_WINDOW)

    def draw(self, parameters: tuple[Tensor, ...], eps: Tensor) -> Tensor:
        """Return a value in [0, 1]: the inverse of F(x) = (exp(t x) - 1) / (exp(t) - 1), t the logit of probs."""
        uniform = uniform_of(eps)
        logit = torch.logit(parameters[1], eps=torch.finfo(eps.dtype).eps)
        flat = logit.abs() < _FLAT
        away = torch.where(flat, torch.ones_like(logit), logit)
        line = uniform + 0.5 * logit * uniform * (1 - uniform)
        return torch.where(flat, line, torch.log1p(uniform * torch.expm1(away)) / away)
