"""The objective, and the importance-weighted bound."""

from __future__ import annotations

import dataclasses
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO

from edgevae.train import (
    VAE,
    ConfigError,
    Dataset,
    ModelConfig,
    Trainer,
    TrainingConfig,
    elbo_of_each,
    elbo_terms,
    evaluate_elbo,
    objective_of,
)
from edgevae.train.elbo import VALUES_AT_ONCE, evaluating, importance_weighted_bound
from edgevae.train.networks import AbstractDecoder, AbstractEncoder
from edgevae.train.objective import ScaleLatent
from tests.train.models import LATENTS, SMALL, spread

MODEL = ModelConfig((1, 8, 8), z_dim=4, hidden_dim=24)


def fit(dataset: Dataset, epochs: int, **options: float) -> tuple[Trainer, list[float]]:
    config = TrainingConfig(batch_size=100, learning_rate=1e-2, **options)  # type: ignore[arg-type]  # ints are floats here
    trainer = Trainer(MODEL, config, torch.device("cpu"))
    return trainer, [trainer.fit_epoch(dataset.train) for _ in range(epochs)]


def test_beta_weighs_the_latent_in_model_and_guide_and_nothing_else(vae: VAE, digits: Dataset) -> None:
    x = digits.test[:20]
    latent = ScaleLatent(3.0)
    with pyro.get_param_store().scope(), torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(3)
        loss = Trace_ELBO().loss(latent(vae.model), latent(vae.guide), x)
        torch.manual_seed(3)
        terms = elbo_terms(vae, x, [torch.randn(20, 5)])
    objective = terms.log_px_z + 3 * (terms.log_pz - terms.log_qz_x)
    assert float(objective.sum()) == pytest.approx(-loss, rel=1e-5)


@pytest.mark.parametrize(
    "choices", [{"latent": "hierarchical", "upper_dims": (4, 2)}, {"latent": "mixture", "components": 3}]
)
def test_beta_weighs_every_level_and_the_component(digits: Dataset, choices: dict[str, Any]) -> None:
    x, scaled = digits.test[:20], ScaleLatent(3.0)
    with pyro.get_param_store().scope(), torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(1)
        vae = VAE(ModelConfig((1, 8, 8), 5, 16, **choices)).eval()
        model, elbo = objective_of(vae)
        total_loss: Any = elbo.loss
        torch.manual_seed(3)
        loss = total_loss(scaled(model), scaled(vae.guide), x)
        torch.manual_seed(3)
        terms = elbo_terms(vae, x, [torch.randn(20, size) for size in vae.config.z_dims])
    objective = terms.log_px_z + 3 * (terms.log_pz - terms.log_qz_x)
    assert float(objective.sum()) == pytest.approx(-loss, rel=1e-5)


def test_kl_falls_and_the_reconstruction_loss_rises_with_beta(digits: Dataset) -> None:
    kl, reconstruction = [], []
    for beta in (0.3, 1.0, 3.0, 10.0):
        trainer, _ = fit(digits, 25, beta=beta)
        x = digits.test.flatten(1)
        with torch.no_grad(), torch.random.fork_rng([]):
            torch.manual_seed(0)
            terms = elbo_terms(trainer.vae, x, [torch.randn(len(x), 4)])
        kl.append(float((terms.log_qz_x - terms.log_pz).mean()))
        reconstruction.append(float(-terms.log_px_z.mean()))
    assert kl == sorted(kl, reverse=True)
    assert reconstruction == sorted(reconstruction)


def test_the_reported_test_elbo_is_unweighted(digits: Dataset) -> None:
    trainer, losses = fit(digits, 25, beta=0.1)
    elbo = evaluate_elbo(trainer.vae, digits.test, num_particles=5)
    assert -losses[-1] > elbo + 3  # the weighted loss hardly counts the latent


def test_more_particles_have_the_same_mean_and_less_noise(vae: VAE, digits: Dataset) -> None:
    spread, mean = [], []
    with pyro.get_param_store().scope(), torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(0)
        for num_particles in (1, 16):
            model, elbo = objective_of(vae, num_particles)
            total_loss: Any = elbo.loss
            losses = torch.tensor([total_loss(model, vae.guide, digits.test[:20]) for _ in range(60)])
            spread.append(float(losses.std()))
            mean.append(float(losses.mean()))
    assert spread[1] == pytest.approx(spread[0] / 4, rel=0.4)
    assert mean[1] == pytest.approx(mean[0], abs=4 * spread[0] / 60**0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "beta must be a positive number, got 0.0"),
        ({"beta": float("inf")}, "beta must be a positive number, got inf"),
        ({"beta_warmup": -1}, "beta_warmup must be at least 0"),
        ({"num_particles": 0}, "num_particles must be at least 1"),
        ({"jit": True, "beta_warmup": 3}, "jit and beta_warmup do not go together"),
        ({"jit": True, "precision": "bf16"}, "jit and precision bf16 do not go together"),
        ({"precision": "fp16"}, "precision must be one of fp32, bf16, got 'fp16'"),
    ],
)
def test_invalid_objectives_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainingConfig(**options)


def test_free_bits_bound_the_kl_of_each_dimension_from_below(vae: VAE, digits: Dataset) -> None:
    x = digits.test[:20]
    model, elbo = objective_of(vae, free_bits=1.0)
    plain_model, plain = objective_of(vae)
    loss_of: Any = elbo.differentiable_loss
    plain_loss_of: Any = plain.differentiable_loss
    with pyro.get_param_store().scope(), torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(3)
        loss = loss_of(model, vae.guide, x)
        torch.manual_seed(3)
        expected = plain_loss_of(plain_model, vae.guide, x)
        z_loc, z_scale = vae.encoder(x)
    prior, posterior = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(z_loc, z_scale)
    kl = torch.distributions.kl_divergence(posterior, prior).mean(0)
    assert kl.min() < 1 < kl.max(), "there is a dimension that gets something back"
    paid = torch.maximum(kl, torch.tensor(1.0)).sum() - kl.sum()
    assert float(loss - expected) == pytest.approx(20 * float(paid), rel=1e-3)


def test_free_bits_keep_dimensions_active_that_the_elbo_gives_up(digits: Dataset) -> None:
    def active(free_bits: float) -> int:
        trainer, _ = fit(digits, 25, beta=2.0, free_bits=free_bits)
        with torch.no_grad():
            z_loc, z_scale = trainer.vae.encoder(digits.test)
        kl = ((z_loc**2 + z_scale**2 - 1) / 2 - z_scale.log()).mean(0)
        return int((kl > 0.2).sum())

    assert (active(0.5), active(0.0)) == (4, 0)


@pytest.mark.parametrize("choices", [{"latent": "hierarchical", "upper_dims": (4, 2)}, {"latent": "mixture"}])
def test_free_bits_are_for_latents_whose_kl_has_a_closed_form(choices: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="free_bits go with latent normal"):
        objective_of(VAE(ModelConfig((1, 8, 8), 5, 16, **choices)), free_bits=0.1)


@pytest.mark.parametrize("clip_norm", [0.0, 3.0])
def test_the_gradient_of_the_mean_loss_is_scaled_down_to_its_largest_norm(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch, clip_norm: float
) -> None:
    norms: list[float] = []
    trainer = Trainer(MODEL, TrainingConfig(batch_size=100, clip_norm=clip_norm), torch.device("cpu"))
    gradients = [parameter for parameter in trainer.vae.parameters() if parameter.requires_grad]

    def watched(*_arguments: Any) -> None:
        norms.append(float(torch.stack([each.grad.norm() for each in gradients if each.grad is not None]).norm()))

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    trainer.fit_epoch(digits.train[:500])
    assert len(norms) == 5
    if clip_norm:
        assert norms == pytest.approx([300.0] * 5, rel=1e-4)  # of the sum over a batch of 100
    else:
        assert min(norms) > 300


# The importance-weighted bound, compared with Pyro's and with log p(x) in closed form


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
def test_the_bound_does_not_depend_on_the_chunk_size(
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
        scale = vae.decoder.likelihood.distribution(torch.zeros(1, 6)).scale[0, 0]
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
