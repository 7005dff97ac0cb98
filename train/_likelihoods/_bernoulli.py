"""Bernoulli: the reference's likelihood."""

from __future__ import annotations

from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from train._likelihoods._base import Likelihood, uniform_of


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

    def distribution_to_fit(
        self,
        outputs: Tensor,
        parameters: tuple[Tensor, ...],  # noqa: ARG002 - others need them
    ) -> TorchDistribution:
        """Return Bernoulli(loc_img), from its logits."""
        return dist.Bernoulli(logits=outputs, validate_args=False)

    def draw(self, parameters: tuple[Tensor, ...], eps: Tensor) -> Tensor:
        """Return 0 or 1."""
        return (uniform_of(eps) < parameters[0]).to(eps.dtype)
