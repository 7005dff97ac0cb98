"""The likelihoods, compared with their definitions."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from edgevae.train import LIKELIHOODS, VAE, ConfigError, Likelihood, ModelConfig
from edgevae.train.distributions import BernoulliOfLogits, Gaussian, diagonal_normal, standard_normal
from edgevae.train.likelihoods import Categorical, ContinuousBernoulli, Normal
from edgevae.train.programs import make_programs, model_spec


def outputs(num_outputs: int, data_dim: int = 6) -> Tensor:
    return torch.randn((4, num_outputs * data_dim), generator=torch.Generator().manual_seed(0)) * 2


@pytest.mark.parametrize("name", list(LIKELIHOODS))
def test_loc_img_is_the_mean_of_the_distribution(name: str) -> None:
    likelihood = LIKELIHOODS[name](ModelConfig((6,), levels=5, data_loc=0.0, data_scale=1.0))
    distribution = likelihood.distribution(outputs(likelihood.num_outputs))
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(0)
        draws = distribution.sample(torch.Size([40_000]))
    torch.testing.assert_close(draws.mean(0), distribution.mean.detach(), atol=0.03, rtol=0)


def test_the_continuous_bernoulli_is_exact_around_one_half() -> None:
    likelihood = ContinuousBernoulli(ModelConfig((1,)))
    distances = torch.cat([torch.logspace(-7, -0.31, 400), -torch.logspace(-7, -0.31, 400), torch.zeros(1)])
    logits = torch.log(0.5 + distances) - torch.log(0.5 - distances)
    distribution = likelihood.distribution(logits.reshape(-1, 1))
    exact = distribution.probs.double().squeeze(1)
    eta = torch.log(exact) - torch.log1p(-exact)  # p(x) = eta exp(eta x) / (exp(eta) - 1)
    near = eta.abs() < 0.3
    away = torch.where(near, torch.ones_like(eta), eta)
    series = 0.5 + eta / 12 - eta**3 / 720 + eta**5 / 30240 - eta**7 / 1209600
    mean = torch.where(near, series, -1 / torch.expm1(-away) - 1 / away)
    torch.testing.assert_close(distribution.mean.squeeze(1).double(), mean, atol=3e-6, rtol=0)


@pytest.mark.parametrize("probs", [0.01, 0.3, 0.4299, 0.4301, 0.4999, 0.5, 0.56, 0.58, 0.99])
def test_the_continuous_bernoulli_integrates_to_one(probs: float) -> None:
    distribution = ContinuousBernoulli(ModelConfig((1,))).distribution(torch.logit(torch.tensor([[probs]])))
    x = torch.linspace(0, 1, 20_001).reshape(-1, 1)
    density = distribution.log_prob(x).exp().double().squeeze(1)
    assert float(torch.trapezoid(density, x.double().squeeze(1))) == pytest.approx(1, abs=1e-5)


def test_the_normal_works_in_the_units_of_the_data_with_a_scale_bounded_below() -> None:
    likelihood = Normal(ModelConfig((6,), likelihood="normal", data_loc=100.0, data_scale=20.0))
    distribution = likelihood.distribution(outputs(1))
    torch.testing.assert_close(distribution.mean, 100 + 20 * outputs(1))
    assert distribution.scale.shape == distribution.mean.shape
    with torch.no_grad():
        likelihood.raw_scale.fill_(-1e9)
    smallest = likelihood.distribution(outputs(1)).scale.min().detach()
    assert float(smallest) == pytest.approx(20 * 1e-2)


def test_the_categorical_rounds_to_the_nearest_of_its_levels() -> None:
    likelihood = Categorical(ModelConfig((6,), likelihood="categorical", levels=5))
    distribution = likelihood.distribution(outputs(5))
    probs = distribution.probs
    assert probs.shape == (4, 6, 5)
    torch.testing.assert_close(probs.sum(-1), torch.ones(4, 6))
    torch.testing.assert_close(distribution.mean, (probs * torch.tensor([0, 0.25, 0.5, 0.75, 1])).sum(-1))
    x = torch.tensor([[0.0, 0.12, 0.13, 0.5, 0.99, 1.0]])
    nearest = torch.tensor([0, 0, 1, 2, 4, 4]).expand(4, 6)[..., None]
    torch.testing.assert_close(distribution.log_prob(x), probs.gather(-1, nearest)[..., 0].log())


def test_choices_that_do_not_make_a_model_are_refused() -> None:
    with pytest.raises(ConfigError, match="levels must be at least 2"):
        ModelConfig((6,), levels=1)
    with pytest.raises(ConfigError, match=r"data_scale positive, got 0\.0 and 0\.0"):
        ModelConfig((6,), data_scale=0.0)


@pytest.mark.parametrize("name", list(LIKELIHOODS))
def test_what_is_fitted_is_the_distribution_of_the_parameters(name: str) -> None:
    likelihood = LIKELIHOODS[name](ModelConfig((6,), levels=5))
    numbers = outputs(likelihood.num_outputs)
    x = torch.rand((4, 6), generator=torch.Generator().manual_seed(1))
    fitted = likelihood.distribution_to_fit(numbers).log_prob(x)
    torch.testing.assert_close(fitted, likelihood.distribution(numbers).log_prob(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "x"), [("bernoulli", 1.0), ("categorical", 0.0)])
def test_a_value_whose_probability_rounds_to_zero_is_fitted_by_its_logit(name: str, x: float) -> None:
    likelihood = LIKELIHOODS[name](ModelConfig((1,), levels=2))
    numbers = torch.tensor([[-40.0]] if name == "bernoulli" else [[-40.0, 0.0]], requires_grad=True)
    log_prob = likelihood.distribution_to_fit(numbers).log_prob(torch.tensor([[x]]))
    log_prob.sum().backward()
    assert float(log_prob.detach()) == pytest.approx(-40)
    assert float(numbers.grad[0, 0]) == pytest.approx(1)  # type: ignore[index]  # it has one, after backward
    assert float(likelihood.distribution(numbers).log_prob(torch.tensor([[x]])).detach()) > -16


def test_a_bernoulli_of_logits_has_pytorchs_log_probability_and_gradients() -> None:
    logits = torch.tensor([-1000.0, -90.0, -20.0, -1.5, -1e-30, 0.0, 1e-8, 0.3, 17.0, 1000.0], dtype=torch.float64)
    values = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None]
    gradients = []
    for distribution in (dist.Bernoulli, BernoulliOfLogits):
        given, scored = logits.clone().requires_grad_(), values.clone().requires_grad_()
        log_prob = distribution(logits=given, validate_args=False).expand([2, 5, 10]).log_prob(scored)
        assert log_prob.shape == (2, 5, 10)
        weighted = (log_prob * torch.arange(1, 11)).sum()
        once = torch.autograd.grad(weighted, (given, scored), create_graph=True)
        gradients.append([log_prob, *once, *torch.autograd.grad(once[0].square().sum(), given)])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("probs", [0.001, 0.3, 0.499, 0.5, 0.501, 0.504, 0.999])
def test_a_draw_of_the_continuous_bernoulli_inverts_its_distribution_function(probs: float) -> None:
    distribution = ContinuousBernoulli(ModelConfig((1,))).distribution(torch.logit(torch.tensor([[probs]])))
    uniform = torch.linspace(0, 1, 101)[:, None, None]
    x = distribution.icdf(uniform).double()
    t = np.log(probs) - np.log1p(-probs)
    below = torch.expm1(t * x) / np.expm1(t) if t else x
    torch.testing.assert_close(below, uniform.double(), atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", list(LIKELIHOODS))
def test_shapes_of_draws_and_of_expanded_distributions_are_pyros(name: str) -> None:
    likelihood = LIKELIHOODS[name](ModelConfig((6,), levels=5))
    numbers = outputs(likelihood.num_outputs)
    for distribution in (likelihood.distribution(numbers), likelihood.distribution_to_fit(numbers)):
        wide = distribution.expand(torch.Size([3, 4, 6]))
        assert wide.sample(torch.Size([2])).shape == (2, 3, 4, 6)
        value = distribution.sample()
        assert wide.log_prob(value).shape == (3, 4, 6)
        torch.testing.assert_close(wide.log_prob(value)[1], distribution.log_prob(value))


class Counts(Likelihood):
    """p(x|z) = Poisson(exp(outputs)): what a user would write."""

    unit_interval: ClassVar[bool] = False

    def distribution(self, outputs: Tensor) -> TorchDistribution:
        return dist.Poisson(outputs.exp())


def test_a_likelihood_of_counts_has_a_mean_and_no_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LIKELIHOODS, "counts", Counts)
    vae = VAE(ModelConfig((3,), 2, 4, likelihood="counts")).eval()
    assert not model_spec(vae).has_draws
    programs = make_programs(vae)
    assert set(programs) == {"encoder", "decoder", "reconstruct", "elbo"}
    assert [spec.name for spec in programs["decoder"].signature.outputs] == ["loc_img"]
    x, z = torch.tensor([[0.0, 1.0, 7.0]]), torch.randn(1, 2)
    with torch.no_grad():
        loc_img = programs["decoder"].module(z)
        log_px_z, _, _ = programs["elbo"].module(x, z, torch.zeros(1, 2), torch.ones(1, 2), loc_img)
        torch.testing.assert_close(log_px_z, dist.Poisson(vae.decoder(z)).log_prob(x).sum(-1))


@pytest.mark.parametrize("levels", [8, 16, 256])
def test_the_mean_of_a_categorical_stays_in_range(levels: int) -> None:
    likelihood = Categorical(ModelConfig((500,), likelihood="categorical", levels=levels))
    numbers = torch.randn((4, levels, 500), generator=torch.Generator().manual_seed(0))
    numbers[:, -1] += 20
    assert float(likelihood.distribution(numbers.flatten(1)).mean.max()) <= 1


# The training's normal densities, compared with PyTorch's


Shapes = tuple[tuple[int, ...], ...]


def derivatives(log_prob: Tensor, given: tuple[Tensor, ...]) -> list[Tensor]:
    """The log-probability, and the first and second derivatives of it, its elements weighted differently."""
    weights = torch.linspace(0.5, 2, log_prob.numel(), dtype=log_prob.dtype).reshape(log_prob.shape)
    first = torch.autograd.grad((weights * log_prob).sum(), given, create_graph=True)
    second = torch.autograd.grad(torch.stack([each.square().sum() for each in first]).sum(), given)
    return [log_prob, *first, *second]


@pytest.mark.parametrize("shapes", [((4, 3),) * 3, ((2, 4, 3), (3,), (4, 1)), ((3,), (2, 4, 3), ())], ids=str)
def test_a_gaussian_has_pytorchs_log_probability_and_derivatives(shapes: Shapes) -> None:
    generator = torch.Generator().manual_seed(0)
    value, loc, raw = (3 * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    value, loc, scale = (each.requires_grad_() for each in (value, loc, raw.exp()))
    found, expected = (
        derivatives(normal(loc, scale, validate_args=True).log_prob(value), (value, loc, scale))
        for normal in (Gaussian, dist.Normal)
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_gaussian_gives_the_gradient_of_one_parameter_alone() -> None:
    loc = torch.zeros(3, requires_grad=True)
    Gaussian(loc, torch.ones(3)).log_prob(torch.ones(3)).sum().backward()
    torch.testing.assert_close(loc.grad, torch.ones(3))


@pytest.mark.parametrize("shape", [(4, 3), (2, 4, 3), (3,)])
def test_a_standard_normal_has_pytorchs_log_probability_and_derivatives(shape: tuple[int, ...]) -> None:
    value = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    pytorchs = torch.distributions.Normal(torch.zeros(4, 3, dtype=torch.float64), torch.ones(4, 3, dtype=torch.float64))
    found = derivatives(standard_normal((4, 3), value).log_prob(value), (value,))
    expected = derivatives(pytorchs.log_prob(value).sum(-1), (value,))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "normal",
    [diagonal_normal(torch.zeros(3), torch.ones(3)), standard_normal((3,), torch.zeros(3))],
    ids=["any", "N(0, I)"],
)
def test_validation_refuses_a_value_that_is_no_number(normal: TorchDistribution) -> None:
    with pyro.validation_enabled(True):
        with pytest.raises(ValueError, match="within the support"):
            normal.expand((2,)).log_prob(torch.tensor([0.0, float("nan"), 0.0]))
        assert normal.expand((2,)).log_prob(torch.zeros(3)).shape == (2,)
