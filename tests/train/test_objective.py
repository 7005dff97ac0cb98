"""The objective: what beta weighs, and what it must not."""

from __future__ import annotations

from typing import Any

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO

from train import (
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
from train._objective import ScaleLatent, beta_at

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


def test_the_warm_up_rises_in_equal_steps_and_starts_above_zero() -> None:
    assert [beta_at(epoch, 2.0, 4) for epoch in range(1, 7)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert beta_at(1, 2.0, 0) == 2.0


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
    ],
)
def test_objectives_that_make_no_sense_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainingConfig(**options)  # type: ignore[arg-type]  # that is the point
