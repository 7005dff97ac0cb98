"""Likelihoods p(x|z). To add one: a subclass of `Likelihood`, and an entry in `LIKELIHOODS`."""

from __future__ import annotations

import abc
from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from .config import ModelConfig
from .distributions import BernoulliOfLogits, Gaussian, GreyLevels
from .distributions import ContinuousBernoulli as _ContinuousBernoulli

_MIN_SCALE = 1e-2  # of standardised data; without a bound the density of constant pixels grows for ever

Constant = float | tuple[float, ...]


class Standardisation(nn.Module):
    """Standardises data inside the networks, and so inside exported graphs.

    The constants move to devices with the model, but are not among its weights.

    Args:
        data_loc: Mean of the data, one number or `data_dim`.
        data_scale: Standard deviation of the data, likewise, positive.
    """

    data_loc: float | Tensor
    data_scale: float | Tensor

    def __init__(self, data_loc: Constant, data_scale: Constant) -> None:
        super().__init__()
        self.changes = (data_loc, data_scale) != (0.0, 1.0)
        for name, value in (("data_loc", data_loc), ("data_scale", data_scale)):
            if isinstance(value, tuple):
                self.register_buffer(name, torch.tensor(value, dtype=torch.float32), persistent=False)
            else:
                setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        """Return `(x - data_loc) / data_scale`, for `x` of shape `(batch, data_dim)`."""
        return (x - self.data_loc) / self.data_scale if self.changes else x

    def loc_of(self, standardised: Tensor) -> Tensor:
        """Return means of standardised values in the data's units, shape `(..., data_dim)`."""
        return self.data_loc + self.data_scale * standardised

    def scale_of(self, standardised: Tensor) -> Tensor:
        """Return standard deviations of standardised values in the data's units, shape `(data_dim,)` or `()`."""
        return self.data_scale * standardised


class Likelihood(nn.Module, abc.ABC):
    """p(x|z) of one observation, its values independent given z.

    The decoder's last layer gives `num_outputs` outputs a value, of which `distribution` makes p(x|z). Its mean is
    `loc_img`, in the units of the data.

    Args:
        config: The model's choices and sizes.
    """

    unit_interval: ClassVar[bool] = True
    """Whether observations must be in [0, 1]; if not, the networks see them standardised."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def num_outputs(self) -> int:
        """Outputs of the decoder's last layer for each value of an observation."""
        return 1

    @abc.abstractmethod
    def distribution(self, outputs: Tensor) -> TorchDistribution:
        """Return p(x|z), of batch shape `(..., data_dim)`; Pyro declares the last axis an event.

        Args:
            outputs: Shape `(..., num_outputs * data_dim)`.
        """

    def distribution_to_fit(self, outputs: Tensor) -> TorchDistribution:
        """Return p(x|z) as the training scores it, where that is better.

        A logit has a log-probability and a gradient where its probability rounds to 0 or 1, and takes fewer steps to
        both. Evaluation and exported graphs score `distribution`, made of the parameters that a bundle has; of those
        PyTorch clamps probabilities, so that no value costs more than 16 nats there. Elsewhere the two differ by
        rounding.

        Args:
            outputs: Shape `(..., num_outputs * data_dim)`.
        """
        return self.distribution(outputs)


class Bernoulli(Likelihood):
    """p(x|z) = Bernoulli(loc_img); grey-scale values in [0, 1] are scored as they are, as in Pyro's example."""

    def distribution(self, outputs: Tensor) -> TorchDistribution:
        """Return Bernoulli(sigmoid(outputs)); not validated, because grey-scale values are not 0 or 1."""
        return dist.Bernoulli(torch.sigmoid(outputs), validate_args=False)

    def distribution_to_fit(self, outputs: Tensor) -> TorchDistribution:
        """Return the Bernoulli distribution of these logits."""
        return BernoulliOfLogits(logits=outputs, validate_args=False)


class ContinuousBernoulli(Likelihood):
    """p(x|z) = CB(probs), the Bernoulli normalised on [0, 1] (Loaiza-Ganem & Cunningham, 2019)."""

    def distribution(self, outputs: Tensor) -> TorchDistribution:
        """Return CB(sigmoid(outputs))."""
        return _ContinuousBernoulli(torch.sigmoid(outputs))


class Normal(Likelihood):
    """p(x|z) = N(loc_img, scale²), with one learned scale, bounded below.

    The networks see standardised data, (x - data_loc) / data_scale, where each value of an observation may have its own
    mean and scale; the parameters come out in the data's own units.
    """

    unit_interval: ClassVar[bool] = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.raw_scale = nn.Parameter(torch.zeros(()))
        self.standardisation = Standardisation(config.data_loc, config.data_scale)

    def distribution(self, outputs: Tensor) -> TorchDistribution:
        """Return N(loc_img, scale²)."""
        return dist.Normal(*self._loc_and_scale(outputs), validate_args=False)

    def distribution_to_fit(self, outputs: Tensor) -> TorchDistribution:
        """Return N(loc_img, scale²)."""
        return Gaussian(*self._loc_and_scale(outputs), validate_args=False)

    def _loc_and_scale(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation, which is the same for all standardised values."""
        loc_img = self.standardisation.loc_of(outputs)
        scale = self.standardisation.scale_of(_MIN_SCALE + nn.functional.softplus(self.raw_scale))
        return loc_img, scale.expand(loc_img.shape)


class Categorical(Likelihood):
    """p(x|z) = Categorical(probs) over `levels` equidistant values from 0 to 1; x is rounded to the nearest."""

    @property
    def num_outputs(self) -> int:
        """A logit for each level."""
        return self.config.levels

    def distribution(self, outputs: Tensor) -> TorchDistribution:
        """Return the distribution of the levels, of probabilities of shape `(..., data_dim, levels)`."""
        return GreyLevels(torch.softmax(self._logits(outputs), dim=-1))

    def distribution_to_fit(self, outputs: Tensor) -> TorchDistribution:
        """Return the distribution of the levels, of their logits."""
        return GreyLevels(logits=self._logits(outputs))

    def _logits(self, outputs: Tensor) -> Tensor:
        """Shape `(..., data_dim, levels)`."""
        return outputs.unflatten(-1, (self.config.levels, -1)).transpose(-2, -1)


LIKELIHOODS: dict[str, type[Likelihood]] = {
    "bernoulli": Bernoulli,
    "continuous-bernoulli": ContinuousBernoulli,
    "normal": Normal,
    "categorical": Categorical,
}
