"""Normal: for data in any range."""

from __future__ import annotations

from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ..config import ModelConfig
from ..gaussian import Gaussian
from ..standardisation import Standardisation
from .base import Likelihood

_MIN_SCALE = 1e-2  # of the data's own scale: below it a density on grey-scale pixels grows without bound


class Normal(Likelihood):
    """p(x|z) = N(loc_img, scale²), with one learned scale, bounded below.

    The networks see standardised data, (x - data_loc) / data_scale, where each value of an observation may have its own
    mean and scale; the parameters come out in the data's own units.
    """

    parameter_names: ClassVar[tuple[str, ...]] = ("loc_img", "scale")
    unit_interval: ClassVar[bool] = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.raw_scale = nn.Parameter(torch.zeros(()))
        self.standardisation = Standardisation(config.data_loc, config.data_scale)

    def parameters_of(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """Return `loc_img`, the mean, and `scale`, the standard deviation: the same for all standardised values."""
        loc_img = self.standardisation.loc_of(outputs)
        scale = self.standardisation.scale_of(_MIN_SCALE + nn.functional.softplus(self.raw_scale))
        return loc_img, scale.expand(loc_img.shape)

    def distribution(self, parameters: tuple[Tensor, ...]) -> TorchDistribution:
        """Return N(loc_img, scale²)."""
        loc_img, scale = parameters
        return dist.Normal(loc_img, scale, validate_args=False)

    def distribution_to_fit(self, outputs: Tensor) -> TorchDistribution:
        """Return N(loc_img, scale²)."""
        loc_img, scale = self.parameters_of(outputs)
        return Gaussian(loc_img, scale, validate_args=False)

    def draw(self, parameters: tuple[Tensor, ...], eps: Tensor) -> Tensor:
        """Return loc_img + scale * eps."""
        loc_img, scale = parameters
        return loc_img + scale * eps
