"""The objective: what beta weighs, and what it must not."""

from __future__ import annotations

from typing import Any

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO

from edgevae.train import (
    VAE,
    ConfigError,
    Dataset,
    ModelConfig,
    Trainer,
    TrainingConfig,
    elbo_terms,
    evaluate_elbo,
    objective_of,
)
from edgevae.train.objective import ScaleLatent

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
def test_objectives_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainingConfig(**options)


def test_free_bits_make_every_dimension_cost_at_least_its_share(vae: VAE, digits: Dataset) -> None:
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


def test_free_bits_keep_dimensions_alive_that_the_elbo_gives_up(digits: Dataset) -> None:
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
