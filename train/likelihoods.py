"""Likelihoods p(x|z). To add one: a subclass of `Likelihood`, and an entry in `LIKELIHOODS`."""

from __future__ import annotations

import abc
import math
from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from .config import ModelConfig
from .distributions import BernoulliOfLogits, Gaussian

_TAYLOR_WINDOW = (0.43, 0.57)
_SMALL_LOGIT = 1e-2  # below it the continuous Bernoulli's density is a straight line to float32's precision
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

    The decoder's last layer gives `num_outputs` outputs a value. `parameters_of` turns them into the parameters that
    the decoder returns, `loc_img` first: the mean of p(x|z), in the units of the data, shape `(batch, data_dim)`.

    Args:
        config: The model's choices and sizes.
    """

    parameter_names: ClassVar[tuple[str, ...]]
    """Names of what `parameters_of` returns; the first is `loc_img`."""

    discrete: ClassVar[bool] = False
    """Whether p(x|z) is discrete."""

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
    def parameters_of(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """Return the parameters, `loc_img` first, for `outputs` of shape `(..., num_outputs * data_dim)`."""

    @abc.abstractmethod
    def distribution(self, parameters: tuple[Tensor, ...]) -> TorchDistribution:
        """Return p(x|z), of batch shape `(..., data_dim)`; Pyro declares the last axis an event."""

    def distribution_to_fit(self, outputs: Tensor) -> TorchDistribution:
        """Return p(x|z) as the training scores it, from the decoder's outputs where that is better.

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
    return uniform.clamp(margin, 1 - margin)  # at 0 and 1, to which rounding may lead, the inverse is infinite


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
        flat = logit.abs() < _SMALL_LOGIT
        away = torch.where(flat, torch.ones_like(logit), logit)
        line = uniform + 0.5 * logit * uniform * (1 - uniform)
        return torch.where(flat, line, torch.log1p(uniform * torch.expm1(away)) / away)


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


LIKELIHOODS: dict[str, type[Likelihood]] = {
    "bernoulli": Bernoulli,
    "continuous-bernoulli": ContinuousBernoulli,
    "normal": Normal,
    "categorical": Categorical,
}
