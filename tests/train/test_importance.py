"""The importance-weighted bound, beside Pyro's and beside log p(x) in closed form."""

from __future__ import annotations

import dataclasses
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import RenyiELBO

from edgevae.train import VAE, Dataset, ModelConfig, elbo_of_each, elbo_terms
from edgevae.train.elbo import VALUES_AT_ONCE, evaluating, importance_weighted_bound
from edgevae.train.networks import AbstractDecoder, AbstractEncoder
from tests.train.models import LATENTS, SMALL, spread

LIKELIHOODS = ["bernoulli", "continuous-bernoulli", "normal", "categorical"]


@pytest.mark.parametrize("choices", LATENTS)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_weights_are_those_of_pyros_traces(digits: Dataset, choices: dict[str, Any], likelihood: str) -> None:
    vae = spread(dataclasses.replace(SMALL, likelihood=likelihood, num_classes=10, **choices))
    x, y = digits.test[:20], torch.arange(20) % 10
    log_weights = []
    with torch.random.fork_rng([]), evaluating(vae):
        torch.manual_seed(0)
        noise = [torch.randn(7, 20, size) for size in vae.config.z_dims]
        for eps in zip(*noise, strict=True):
            log_weights += [elbo_terms(vae, x, eps, y).elbo.double()]
    expected = torch.logsumexp(torch.stack(log_weights), dim=0) - torch.log(torch.tensor(7.0))
    found = importance_weighted_bound(vae, x, y, 7)
    assert found.shape == (20,)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("vectorize", [False, True])
def test_the_bound_is_pyros_renyi_elbo(digits: Dataset, vae: VAE, vectorize: bool) -> None:
    # PyTorch draws normals in blocks of 16: with 16 rows, particles one by one are those that are drawn together.
    x = digits.test[:16]
    bound: Any = RenyiELBO(alpha=0, num_particles=50, vectorize_particles=vectorize, max_plate_nesting=1)
    with pyro.get_param_store().scope(), torch.random.fork_rng([]), torch.no_grad():
        pyro.set_rng_seed(0)
        loss = bound.loss(vae.model, vae.guide, x)
    assert float(importance_weighted_bound(vae, x, None, 50).sum()) == pytest.approx(-loss, rel=1e-5)


def test_one_particle_is_the_elbo_and_more_come_closer(digits: Dataset, vae: VAE) -> None:
    x = digits.test[:100]
    one, few, many = (importance_weighted_bound(vae, x, None, count).mean() for count in (1, 10, 500))
    assert float(one) == pytest.approx(float(elbo_of_each(vae, x).mean()), rel=1e-5)
    assert one < few < many


@pytest.mark.parametrize("particles", [1, 13])
def test_what_fits_into_memory_does_not_change_the_bound(
    digits: Dataset, vae: VAE, monkeypatch: pytest.MonkeyPatch, particles: int
) -> None:
    x = digits.test[:40]
    whole = importance_weighted_bound(vae, x, None, particles * 100)
    rows: list[int] = []
    outputs_at = vae.decoder.outputs_at

    def counted(z: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        rows.append(len(z))
        return outputs_at(z, y)

    monkeypatch.setitem(VALUES_AT_ONCE, "cpu", 30 * 64)
    monkeypatch.setattr(vae.decoder, "outputs_at", counted)
    parts = importance_weighted_bound(vae, x, None, particles * 100)
    assert sum(rows) == 40 * particles * 100
    assert max(rows) <= 30
    torch.testing.assert_close(parts.mean(), whole.mean(), rtol=0, atol=1.0 if particles == 1 else 0.3)


class LinearDecoder(AbstractDecoder):
    """x = W z + b."""

    def make_outputs(self, num_outputs: int) -> None:
        self.fc1 = torch.nn.Linear(self.code_dim, 6)

    def outputs(self, code: torch.Tensor) -> torch.Tensor:
        numbers: torch.Tensor = self.fc1(code)
        return numbers


class GivenEncoder(AbstractEncoder):
    """q(z|x) = N(V (x - b), scale²)."""

    def make_features(self) -> None:
        self.scale = torch.ones(3)
        self.gain = torch.zeros(3, 6)
        self.offset = torch.zeros(6)

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        z_loc = (x - self.offset) @ self.gain.T
        return z_loc, self.scale.expand(z_loc.shape)

    def features(self, x: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        return x


def linear_gaussian() -> tuple[VAE, GivenEncoder, torch.Tensor, torch.Tensor]:
    """A model with p(x) = N(b, W Wᵀ + s²) in closed form, its exact posterior, some data and its log p(x)."""
    generator = torch.Generator().manual_seed(1)
    vae = VAE(ModelConfig((6,), z_dim=3, hidden_dim=4, likelihood="normal"))
    vae.encoder = encoder = GivenEncoder(3, 4, (6,))
    decoder = LinearDecoder(3, 4, (6,), vae.decoder.likelihood)
    vae.decoder = decoder
    x = torch.randn((9, 6), generator=generator)
    with torch.no_grad():
        # columns that stand on each other, so that the posterior is independent in each dimension
        lengths = torch.tensor([0.5, 1.0, 1.5])
        decoder.fc1.weight.copy_(torch.linalg.qr(torch.randn((6, 3), generator=generator))[0] * lengths)
        weight, offset = decoder.fc1.weight, decoder.fc1.bias
        scale = vae.decoder.likelihood.parameters_of(torch.zeros(1, 6))[1][0, 0]
        precision = 1 + lengths.square() / scale.square()
        encoder.scale = precision.rsqrt()
        encoder.gain = weight.T / scale.square() / precision[:, None]
        encoder.offset = offset.clone()
        covariance = weight @ weight.T + scale.square() * torch.eye(6)
        log_px = torch.distributions.MultivariateNormal(offset, covariance).log_prob(x)
    return vae, encoder, x, log_px.double()


def test_with_the_exact_posterior_every_bound_is_log_px() -> None:
    vae, _, x, log_px = linear_gaussian()
    for particles in (1, 30):
        torch.testing.assert_close(importance_weighted_bound(vae, x, None, particles), log_px, rtol=0, atol=1e-4)


def test_with_another_posterior_the_bound_comes_to_log_px_from_below() -> None:
    vae, encoder, x, log_px = linear_gaussian()
    encoder.scale = encoder.scale * 1.4
    elbo = elbo_of_each(vae, x, 200)
    bound = importance_weighted_bound(vae, x, None, 20_000)
    assert bool((elbo < log_px - 0.2).all())
    torch.testing.assert_close(bound, log_px, rtol=0, atol=0.02)
