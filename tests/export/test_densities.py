"""Log-densities and means of Pyro's distributions in ONNX Runtime, against PyTorch in float64."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from numpy.typing import NDArray
from pyro.distributions import transforms
from torch import Tensor

from tests.export.functions import exported, run_exported

Draw = Callable[[np.random.Generator, int], tuple[NDArray[np.float64], ...]]


@dataclasses.dataclass(frozen=True)
class Density:
    """A distribution of a batch.

    Args:
        of: Makes the distribution of parameters.
        draws: Values and parameters of `n` rows: typical ones, or extreme ones.
        nats: The largest error of a log-density.
        has_mean: Whether the distribution has a mean.
    """

    of: Callable[..., Any]
    draws: Draw
    nats: float
    has_mean: bool = True


def reals(rng: np.random.Generator, n: int, *, scale: float = 1.0, size: int = 4) -> NDArray[np.float64]:
    return scale * rng.standard_normal((n, size))


def positives(rng: np.random.Generator, n: int, low: float, high: float, size: int = 4) -> NDArray[np.float64]:
    """Spread evenly over the magnitudes."""
    return np.exp(rng.uniform(np.log(low), np.log(high), (n, size)))


def counts(rng: np.random.Generator, n: int, high: float) -> NDArray[np.float64]:
    """With some zeros."""
    return np.floor(positives(rng, n, 0.5, high))


def bits(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    return rng.integers(2, size=(n, 4)).astype(np.float64)


def onehot(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
    return np.eye(4)[rng.integers(4, size=n)]


def simplex(rng: np.random.Generator, n: int, spread: float) -> NDArray[np.float64]:
    p = np.exp(reals(rng, n, scale=spread))
    return p / p.sum(-1, keepdims=True)


def factor(rng: np.random.Generator, n: int, size: int, low: float) -> NDArray[np.float64]:
    """Lower triangular, with a diagonal from `low` to 1."""
    lower = np.tril(0.3 * rng.standard_normal((n, size, size)), -1)
    return lower + np.eye(size) * positives(rng, n, low, 1, size)[:, None]


def covariance(rng: np.random.Generator, n: int, size: int) -> NDArray[np.float64]:
    lower = factor(rng, n, size, 0.5)
    return lower @ lower.swapaxes(-1, -2)


def transformed(scale: Tensor, parts: list[Any]) -> Any:
    """The parts, of a normal with this scale."""
    return dist.TransformedDistribution(dist.Normal(torch.zeros_like(scale), scale).to_event(1), parts)


class Flow(torch.nn.Module):
    """A density that needs no inverse: the value goes through the transform, to the base."""

    def __init__(self, transform: Any) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, scale: Tensor) -> Any:
        return transformed(scale, [self.transform.inv])


def fixed(make: Callable[[], Any]) -> Flow:
    """The same weights each time."""
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        return Flow(make())


DENSITIES = {
    # counts and classes
    "bernoulli": Density(
        lambda logits: dist.Bernoulli(logits=logits).to_event(1),
        lambda rng, n: (bits(rng, n), reals(rng, n)),
        2e-6,
    ),
    "bernoulli, extreme": Density(
        lambda logits: dist.Bernoulli(logits=logits).to_event(1),
        lambda rng, n: (bits(rng, n), reals(rng, n, scale=60)),
        2e-5,
    ),
    "bernoulli of probabilities": Density(
        lambda probs: dist.Bernoulli(probs).to_event(1),
        lambda rng, n: (bits(rng, n), rng.uniform(0.01, 0.99, (n, 4))),
        4e-6,
    ),
    "categorical": Density(
        lambda logits: dist.Categorical(logits=logits),
        lambda rng, n: (rng.integers(4, size=n).astype(np.float64), reals(rng, n)),
        1e-6,
        has_mean=False,
    ),
    "categorical, extreme": Density(
        lambda logits: dist.Categorical(logits=logits),
        lambda rng, n: (rng.integers(4, size=n).astype(np.float64), reals(rng, n, scale=300)),
        6e-5,
        has_mean=False,
    ),
    "one-hot categorical": Density(
        lambda logits: dist.OneHotCategorical(logits=logits), lambda rng, n: (onehot(rng, n), reals(rng, n)), 1e-6
    ),
    "binomial": Density(
        lambda total, logits: dist.Binomial(total, logits=logits),
        lambda rng, n: (counts(rng, n, 20), 20 + counts(rng, n, 50), reals(rng, n)),
        1e-5,
    ),
    "binomial, extreme": Density(
        lambda total, logits: dist.Binomial(total, logits=logits),
        lambda rng, n: (counts(rng, n, 1e4), 1e4 + counts(rng, n, 1e4), reals(rng, n, scale=5)),
        1e-2,
    ),
    "multinomial": Density(
        lambda logits: dist.Multinomial(1, logits=logits, validate_args=False),
        lambda rng, n: (counts(rng, n, 20), reals(rng, n)),
        2e-5,
    ),
    "multinomial, extreme": Density(
        lambda logits: dist.Multinomial(1, logits=logits, validate_args=False),
        lambda rng, n: (counts(rng, n, 1e4), reals(rng, n, scale=5)),
        1e-2,
    ),
    "poisson": Density(dist.Poisson, lambda rng, n: (counts(rng, n, 50), positives(rng, n, 0.1, 50)), 3e-5),
    "poisson, extreme": Density(
        dist.Poisson, lambda rng, n: (counts(rng, n, 1e4), positives(rng, n, 1e-20, 1e4)), 5e-2
    ),
    "negative binomial": Density(
        lambda total, logits: dist.NegativeBinomial(total, logits=logits),
        lambda rng, n: (counts(rng, n, 50), positives(rng, n, 0.1, 50), reals(rng, n)),
        3e-5,
    ),
    "negative binomial, extreme": Density(
        lambda total, logits: dist.NegativeBinomial(total, logits=logits),
        lambda rng, n: (counts(rng, n, 1e4), positives(rng, n, 1e-3, 1e6), reals(rng, n, scale=5)),
        5e-2,
    ),
    "zero-inflated poisson": Density(
        lambda rate, gate: dist.ZeroInflatedPoisson(rate, gate=gate),
        lambda rng, n: (counts(rng, n, 20), positives(rng, n, 0.1, 20), rng.uniform(0.05, 0.95, (n, 4))),
        1e-5,
    ),
    "zero-inflated poisson of logits, extreme": Density(
        lambda rate, gate_logits: dist.ZeroInflatedPoisson(rate, gate_logits=gate_logits),
        lambda rng, n: (counts(rng, n, 1e3), positives(rng, n, 1e-6, 1e3), reals(rng, n, scale=20)),
        2e-3,
        has_mean=False,  # 1 - gate is rounded to 0, as in PyTorch's float32
    ),
    "zero-inflated negative binomial": Density(
        lambda total, logits, gate: dist.ZeroInflatedNegativeBinomial(total, logits=logits, gate=gate),
        lambda rng, n: (
            *(counts(rng, n, 20), positives(rng, n, 0.1, 20)),
            *(reals(rng, n), rng.uniform(0.05, 0.95, (n, 4))),
        ),
        1e-5,
    ),
    "zero-inflated negative binomial of logits": Density(
        lambda total, logits, gate: dist.ZeroInflatedNegativeBinomial(total, logits=logits, gate_logits=gate),
        lambda rng, n: (
            *(counts(rng, n, 100), positives(rng, n, 0.01, 1000)),
            *(reals(rng, n, scale=3), reals(rng, n, scale=20)),
        ),
        5e-4,
        has_mean=False,  # likewise
    ),
    # real numbers
    "beta": Density(
        dist.Beta,
        lambda rng, n: (rng.uniform(0.05, 0.95, (n, 4)), positives(rng, n, 0.5, 20), positives(rng, n, 0.5, 20)),
        1e-5,
    ),
    "beta, extreme": Density(
        dist.Beta,
        lambda rng, n: (rng.uniform(1e-6, 0.999, (n, 4)), positives(rng, n, 1e-4, 1e4), positives(rng, n, 1e-4, 1e4)),
        1e-3,
    ),
    "dirichlet": Density(dist.Dirichlet, lambda rng, n: (simplex(rng, n, 1), positives(rng, n, 0.5, 20)), 1e-5),
    "dirichlet, extreme": Density(
        dist.Dirichlet, lambda rng, n: (simplex(rng, n, 5), positives(rng, n, 1e-3, 1e4)), 1e-2
    ),
    "exponential": Density(
        dist.Exponential, lambda rng, n: (positives(rng, n, 0.1, 10), positives(rng, n, 0.1, 10)), 5e-6
    ),
    "gamma": Density(
        dist.Gamma,
        lambda rng, n: (positives(rng, n, 0.1, 10), positives(rng, n, 0.5, 20), positives(rng, n, 0.1, 10)),
        1e-5,
    ),
    "gamma, extreme": Density(
        dist.Gamma,
        lambda rng, n: (positives(rng, n, 1e-6, 1e3), positives(rng, n, 1e-3, 1e4), positives(rng, n, 1e-3, 1)),
        1e-2,
    ),
    "gumbel": Density(dist.Gumbel, lambda rng, n: (reals(rng, n), reals(rng, n), positives(rng, n, 0.5, 3)), 5e-5),
    "laplace": Density(dist.Laplace, lambda rng, n: (reals(rng, n), reals(rng, n), positives(rng, n, 0.1, 3)), 3e-6),
    "log-normal": Density(
        dist.LogNormal, lambda rng, n: (positives(rng, n, 0.1, 10), reals(rng, n), positives(rng, n, 0.1, 3)), 3e-5
    ),
    "student": Density(
        dist.StudentT,
        lambda rng, n: (reals(rng, n), positives(rng, n, 1.5, 30), reals(rng, n), positives(rng, n, 0.1, 3)),
        1e-5,
        has_mean=False,  # PyTorch's holds a constant NaN, which the runtime refuses
    ),
    "student, extreme": Density(
        dist.StudentT,
        lambda rng, n: (
            reals(rng, n, scale=10),
            positives(rng, n, 1e-2, 1e7),
            reals(rng, n),
            positives(rng, n, 1e-1, 1e4),
        ),
        2e-3,
        has_mean=False,
    ),
    "uniform": Density(
        lambda low, high: dist.Uniform(low, high, validate_args=False),
        lambda rng, n: (rng.uniform(-0.5, 1.5, (n, 4)), rng.uniform(-0.1, 0, (n, 4)), rng.uniform(1, 2, (n, 4))),
        1e-6,
    ),
    "multivariate normal of a covariance": Density(
        dist.MultivariateNormal,
        lambda rng, n: (reals(rng, n, size=5), reals(rng, n, size=5), covariance(rng, n, 5)),
        2e-5,
    ),
    "multivariate normal of a factor": Density(
        lambda loc, lower: dist.MultivariateNormal(loc, scale_tril=lower),
        lambda rng, n: (reals(rng, n, size=8), reals(rng, n, size=8), factor(rng, n, 8, 0.5)),
        2e-4,
    ),
    "low-rank multivariate normal": Density(
        dist.LowRankMultivariateNormal,
        lambda rng, n: (
            *(reals(rng, n, size=20), reals(rng, n, size=20)),
            *(rng.standard_normal((n, 20, 3)), positives(rng, n, 0.1, 3, size=20)),
        ),
        1e-4,
    ),
    "masked": Density(
        lambda loc, mask: dist.Normal(loc, 1.0).mask(mask > 0).to_event(1),
        lambda rng, n: (reals(rng, n), reals(rng, n), reals(rng, n)),
        5e-6,
    ),
    # transformed
    "affine": Density(
        lambda loc, scale: transformed(torch.ones_like(scale), [transforms.AffineTransform(loc, scale)]),
        lambda rng, n: (reals(rng, n), reals(rng, n), positives(rng, n, 0.1, 3)),
        5e-5,
        has_mean=False,
    ),
    "exp": Density(
        lambda scale: transformed(scale, [transforms.ExpTransform()]),
        lambda rng, n: (positives(rng, n, 1e-3, 1e3), positives(rng, n, 0.5, 3)),
        5e-5,
        has_mean=False,
    ),
    "sigmoid": Density(
        lambda scale: transformed(scale, [transforms.SigmoidTransform()]),
        lambda rng, n: (rng.uniform(1e-3, 0.999, (n, 4)), positives(rng, n, 0.5, 3)),
        1e-5,
        has_mean=False,
    ),
    "planar": Density(
        fixed(lambda: transforms.Planar(4)),
        lambda rng, n: (reals(rng, n), positives(rng, n, 0.5, 3)),
        5e-5,
        has_mean=False,
    ),
    "affine coupling": Density(
        fixed(lambda: transforms.affine_coupling(4, [8])),
        lambda rng, n: (reals(rng, n), positives(rng, n, 0.5, 3)),
        5e-5,
        has_mean=False,
    ),
}


def rows(density: Density, n: int, seed: int) -> list[NDArray[np.generic]]:
    """Integers stay integers; all else is float32."""
    drawn = density.draws(np.random.default_rng(seed), n)
    return [array if array.dtype.kind == "i" else array.astype(np.float32) for array in drawn]


def results(density: Density, value: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
    distribution = density.of(*parameters)
    log_prob = distribution.log_prob(value)
    return (log_prob, distribution.mean) if density.has_mean else (log_prob,)


def double(array: NDArray[np.generic]) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.double() if tensor.is_floating_point() else tensor


def errors(name: str) -> tuple[float, float]:
    """The largest error of log-densities, nats, and the largest relative error of means; at batch sizes 1, 2 and 7."""
    density = DENSITIES[name]
    exact = as_double(density)  # before the trace, whose tensors a transform caches
    example = [torch.from_numpy(array) for array in rows(density, 3, 0)]
    model = exported(lambda *arguments: results(density, *arguments), *example)
    nats, relative = 0.0, 0.0
    for n, seed in ((1, 1), (2, 2), (7, 3), (7, 4), (7, 5)):
        given = rows(density, n, seed)
        with torch.no_grad():
            expected = results(exact, *(double(array) for array in given))
        found = run_exported(model, *given)
        assert [array.shape for array in found] == [tensor.shape for tensor in expected]
        log_prob = expected[0].numpy()
        np.testing.assert_array_equal(np.isfinite(found[0]), np.isfinite(log_prob))
        finite = np.isfinite(log_prob)
        nats = max(nats, np.abs(found[0][finite] - log_prob[finite]).max(initial=0))
        if density.has_mean:
            mean = expected[1].numpy()
            relative = max(relative, (np.abs(found[1] - mean) / (np.abs(mean) + 1e-30)).max())
    return nats, relative


def as_double(density: Density) -> Density:
    of = copy.deepcopy(density.of).double() if isinstance(density.of, Flow) else density.of
    return dataclasses.replace(density, of=of)


QUICK = {"bernoulli", "categorical", "multinomial", "negative binomial, extreme", "sigmoid"}
"""One of each kind. An export of any takes seconds, all together minutes."""


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in DENSITIES]
)
def test_a_density_in_onnx_runtime_is_pyros_in_float64(name: str) -> None:
    nats, relative = errors(name)
    assert nats <= DENSITIES[name].nats
    assert relative <= 1e-5
