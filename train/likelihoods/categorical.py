"""Categorical: values as discrete levels."""

from __future__ import annotations

from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from .base import Likelihood, uniform_of


class Categorical(Likelihood):
    """p(x|z) = Categorical(probs) over `levels` equidistant values from 0 to 1; x is rounded to the nearest."""

    parameter_names: ClassVar[tuple[str, ...]] = ("loc_img", "probs")
    discrete: ClassVar[bool] = True

    @property
    def num_outputs(self) -> int:
        """A logit for each level."""
        return self.config.levels

    def parameters_of(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """Return `loc_img`, the mean, and `probs`, shape `(batch, data_dim, levels)`."""
        probs = torch.softmax(self._logits(outputs), dim=-1)
        values = torch.linspace(0, 1, self.config.levels, dtype=probs.dtype, device=probs.device)
        return (probs @ values).clamp(max=1), probs  # a mean: rounding must not lead out of [0, 1]

    def distribution(self, parameters: tuple[Tensor, ...]) -> TorchDistribution:
        """Return Categorical(probs)."""
        return dist.Categorical(parameters[1], validate_args=False)

    def distribution_to_fit(self, outputs: Tensor) -> TorchDistribution:
        """Return Categorical(probs), from its logits."""
        return dist.Categorical(logits=self._logits(outputs), validate_args=False)

    def observed(self, x: Tensor) -> Tensor:
        """Return the nearest level's index."""
        return torch.round(x * (self.config.levels - 1))

    def draw(self, parameters: tuple[Tensor, ...], eps: Tensor) -> Tensor:
        """Return one of the levels, as a value from 0 to 1."""
        below = parameters[1].cumsum(-1)[..., :-1]  # the last one is 1, whatever its rounding says
        level = (uniform_of(eps)[..., None] >= below).sum(-1)
        return level.to(eps.dtype) / (self.config.levels - 1)

    def _logits(self, outputs: Tensor) -> Tensor:
        """Shape `(..., data_dim, levels)`."""
        return outputs.unflatten(-1, (self.config.levels, -1)).transpose(-2, -1)
