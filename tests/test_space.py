"""The model space: each combination of choices trains, exports, verifies and runs."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

import runtime
from export import FORMATS, Source, export_bundle
from train import ARCHITECTURES, LIKELIHOODS, Dataset, Likelihood, ModelConfig, Trainer, TrainingConfig, evaluate_elbo


def fit(config: ModelConfig, images: Tensor) -> Trainer:
    trainer = Trainer(config, TrainingConfig(batch_size=120, learning_rate=1e-2), torch.device("cpu"))
    first = trainer.fit_epoch(images)
    assert trainer.fit_epoch(images) < first
    return trainer


def check(trainer: Trainer, images: Tensor, out: Path) -> runtime.Model:
    """Export in all formats, and hold the runtime against Pyro."""
    vae = trainer.vae.eval()
    reports = export_bundle(Source(out.name, vae, images, "test images", None), out, FORMATS)
    assert [report.format for report in reports] == list(FORMATS)
    model = runtime.load(out, provider="cpu")
    x = images[:30]
    with torch.random.fork_rng([]), torch.no_grad():
        pyro.set_rng_seed(4)
        expected = vae.reconstruct_img(x)
    found = model.reconstruct(x.numpy(), seed=4)
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-5, rtol=1e-5)
    assert model.generate(3, seed=0).shape == (3, vae.config.data_dim)
    elbo = model.elbo(images.numpy(), seed=0, num_particles=5)
    assert float(elbo.mean()) == pytest.approx(evaluate_elbo(vae, images, num_particles=5), rel=0.02, abs=0.3)
    return model


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
@pytest.mark.parametrize("likelihood", list(LIKELIHOODS))
def test_every_combination_trains_exports_verifies_and_runs(
    digits: Dataset, tmp_path: Path, architecture: str, likelihood: str
) -> None:
    config = ModelConfig((1, 8, 8), 3, 12, architecture, likelihood, levels=4, data_loc=0.3, data_scale=0.4)
    if LIKELIHOODS[likelihood].unit_interval:
        config = ModelConfig((1, 8, 8), 3, 12, architecture, likelihood, levels=4)
    model = check(fit(config, digits.train), digits.test, tmp_path / "model")
    assert model.manifest.model.likelihood == likelihood
    assert model.manifest.model.unit_interval == (likelihood != "normal")


class Laplace(Likelihood):
    """p(x|z) = Laplace(loc_img, 0.1): what a user would write."""

    parameter_names: ClassVar[tuple[str, ...]] = ("loc_img",)
    unit_interval: ClassVar[bool] = False

    def parameters_of(self, outputs: Tensor) -> tuple[Tensor, ...]:
        return (outputs,)

    def distribution(self, parameters: tuple[Tensor, ...]) -> TorchDistribution:
        return dist.Laplace(parameters[0], torch.full_like(parameters[0], 0.1), validate_args=False)


def test_a_new_likelihood_is_one_class_and_goes_the_whole_way(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LIKELIHOODS, "laplace", Laplace)
    trainer = fit(ModelConfig((1, 8, 8), 3, 12, likelihood="laplace"), digits.train)
    model = check(trainer, digits.test, tmp_path / "laplace")
    assert model.encode(digits.test.numpy() * 5 - 2).z_loc.shape == (360, 3)  # data in any range
