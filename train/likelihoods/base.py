"""What every likelihood is."""

from __future__ import annotations

import abc
import math
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from ..config import ModelConfig


class Likelihood(nn.Module, abc.ABC):
    """p(x|z) of one observation, its values independent given z.

    The decoder's last layer gives `num_outputs` numbers a value; `parameters_of` makes of them the parameters that the
    decoder returns, `loc_img` first: the mean of p(x|z), in the units of the data, shape `(batch, data_dim)`.

    Args:
        config: The model's choices and sizes.
    """

    parameter_names: ClassVar[tuple[str, ...]]
    """Names of what `parameters_of` returns; the first is `loc_img`."""

    discrete: ClassVar[bool] = False
    """Whether draws of p(x|z) take separate values only."""

    unit_interval: ClassVar[bool] = True
    """Whether observations must lie in [0, 1]; where they need not, the networks see them standardised."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def num_outputs(self) -> int:
        """Numbers that the decoder's last layer gives for each value of an observation."""
        return 1

    @abc.abstractmethod
    def parameters_of(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """Return the parameters, `loc_img` first, for `outputs` of shape `(..., num_outputs * data_dim)`."""

    @abc.abstractmethod
    def distribution(self, parameters: tuple[Tensor, ...]) -> TorchDistribution:
        """Return p(x|z), of batch shape `(..., data_dim)`; Pyro declares the last axis an event."""

    def distribution_to_fit(self, outputs: Tensor) -> TorchDistribution:
        """Return p(x|z) as the training scores it, from the decoder's last numbers where that is better.

        A logit has a log-probability and a gradient where its probability rounds to 0 or 1, and takes fewer steps to
        both. Evaluation and exported graphs score `distribution(parameters)`, because parameters are what a bundle
        has; of those PyTorch clamps probabilities, so that no value costs more than 16 nats there. Elsewhere the two
        differ by rounding.

        Args:
            outputs: Shape `(..., num_outputs * data_dim)`.
        """
        return self.distribution(self.parameters_of(outputs))

    def draw(self, parameters: tuple[Tensor, ...], eps: Tensor) -> Tensor:
        """Return a draw of p(x|z) in the units of the data, for standard normal noise, shape `(batch, data_dim)` each.

        Here by the inverse of the cumulative distribution function, where PyTorch has it.
        """
        drawn: Tensor = self.distribution(parameters).icdf(uniform_of(eps))
        return drawn

    def observed(self, x: Tensor) -> Tensor:
        """Return the value that `distribution` scores, for observations `x` of shape `(batch, data_dim)`."""
        return x


def uniform_of(eps: Tensor) -> Tensor:
    """Return uniform noise inside of (0, 1) for standard normal noise: Φ(eps)."""
    uniform = 0.5 * (1 + torch.erf(eps * math.sqrt(0.5)))
    margin = torch.finfo(eps.dtype).eps / 2
    return uniform.clamp(margin, 1 - margin)  # where rounding makes it 0 or 1, an inverse has no value
