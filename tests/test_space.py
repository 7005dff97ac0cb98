"""The model space: each combination of choices trains, exports, verifies and runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from torch import Tensor

import edgevae
from benchmarks.space import COMBINATIONS, tiny_config
from edgevae.export import FORMATS, Format, Source, export_bundle
from edgevae.train import (
    ARCHITECTURES,
    LATENTS,
    LIKELIHOODS,
    Dataset,
    Likelihood,
    ModelConfig,
    Trainer,
    TrainingConfig,
    elbo_terms,
    load_dataset,
)

# Four of them hold every choice; the others take some minutes more.
FEW = [
    (list(ARCHITECTURES)[row // 3], likelihood, list(LATENTS)[row % 3], row == 0)
    for row, likelihood in enumerate(LIKELIHOODS)
]


@pytest.fixture(scope="module")
def labelled() -> Dataset:
    return load_dataset("digits", labels=True)


def fit(config: ModelConfig, dataset: Dataset) -> Trainer:
    trainer = Trainer(config, TrainingConfig(batch_size=120, learning_rate=1e-2), torch.device("cpu"))
    labels = dataset.train_labels if config.num_classes else None
    first = trainer.fit_epoch(dataset.train, labels=labels)
    assert trainer.fit_epoch(dataset.train, labels=labels) < first
    return trainer


def check(trainer: Trainer, dataset: Dataset, out: Path, formats: Sequence[Format]) -> edgevae.Model:
    """Export, and hold the runtime against Pyro."""
    vae, images = trainer.vae.eval(), dataset.test
    labels = dataset.test_labels if vae.config.num_classes else None
    reports = export_bundle(Source(out.name, vae, images, "test images", None, labels), out, formats)
    assert [report.format for report in reports] == list(formats)
    model = edgevae.load(out, provider="cpu")
    assert model.verify().passed
    x, y = images[:30].numpy(), None if labels is None else labels[:30].numpy()
    with torch.random.fork_rng([]), torch.no_grad():
        pyro.set_rng_seed(4)
        expected = vae.reconstruct_img(images[:30], None if labels is None else labels[:30])
    np.testing.assert_allclose(model.reconstruct(x, y=y, seed=4), expected.numpy(), atol=2e-5, rtol=1e-5)
    given = {"component": torch.full((30,), 2)} if vae.config.latent == "mixture" else {}
    with pyro.get_param_store().scope(), torch.random.fork_rng([]), torch.no_grad():
        pyro.set_rng_seed(5)
        generated = poutine.condition(vae.model, data=given)(images[:30], None if labels is None else labels[:30])
    found = model.generate(30, seed=5, y=y, **{name: value.numpy() for name, value in given.items()})
    np.testing.assert_allclose(found, generated.numpy(), atol=2e-5, rtol=1e-5)
    assert model.decode(model.encode(x, y=y).sample(seed=0), y=y).shape == x.reshape(30, -1).shape
    assert model.posterior_predictive(x, 2, seed=0, y=y).shape == (2, 30, vae.config.data_dim)
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(8)
        eps = [torch.randn(30, size) for size in vae.config.z_dims]
        terms = elbo_terms(vae, images[:30], eps, None if labels is None else labels[:30])
    np.testing.assert_allclose(model.elbo(x, seed=8, y=y), terms.elbo.numpy(), rtol=1e-4, atol=1e-3)
    bound = model.log_likelihood(x, seed=0, num_particles=20, y=y)  # Jensen: above the mean of the same particles
    assert (bound >= model.elbo(x, seed=0, num_particles=20, y=y) - 1e-6).all()
    return model


def test_every_choice_is_among_the_few() -> None:
    assert len(COMBINATIONS) == 48
    for everywhere, few in zip(zip(*COMBINATIONS, strict=True), zip(*FEW, strict=True), strict=True):
        assert set(few) == set(everywhere)


@pytest.mark.parametrize(
    ("architecture", "likelihood", "latent", "conditional"),
    [pytest.param(*choice, marks=[] if choice in FEW else [pytest.mark.slow]) for choice in COMBINATIONS],
)
def test_every_combination_trains_exports_verifies_and_runs(
    labelled: Dataset, tmp_path: Path, architecture: str, likelihood: str, latent: str, conditional: bool
) -> None:
    config = tiny_config(architecture, likelihood, latent, conditional)
    spec = check(fit(config, labelled), labelled, tmp_path / "model", ["onnx", "torchscript"]).manifest.model
    assert (spec.architecture, spec.likelihood, spec.latent) == (architecture, likelihood, latent)
    assert spec.unit_interval == (likelihood != "normal")
    assert (spec.num_classes, spec.z_dims) == (10 * conditional, config.z_dims)
    assert spec.num_components == (4 if latent == "mixture" else 0)


def test_colour_images_of_odd_sizes_go_the_whole_way(tmp_path: Path) -> None:
    images = torch.rand((300, 3, 9, 13), generator=torch.Generator().manual_seed(0)) ** 4
    config = ModelConfig((3, 9, 13), 3, 12, "conv", latent="hierarchical", upper_dims=(2,))
    model = check(
        fit(config, Dataset("colours", images, images)), Dataset("c", images, images), tmp_path / "c", ["onnx"]
    )
    assert model.data_shape == (3, 9, 13)
    assert (tmp_path / "c" / "samples.png").is_file()


class Laplace(Likelihood):
    """p(x|z) = Laplace(loc_img, 0.1): what a user would write."""

    unit_interval: ClassVar[bool] = False

    def distribution(self, outputs: Tensor) -> TorchDistribution:
        return dist.Laplace(outputs, torch.full_like(outputs, 0.1), validate_args=False)


def test_a_new_likelihood_is_one_class_and_goes_the_whole_way(
    labelled: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LIKELIHOODS, "laplace", Laplace)
    trainer = fit(ModelConfig((1, 8, 8), 3, 12, likelihood="laplace"), labelled)
    model = check(trainer, labelled, tmp_path / "laplace", FORMATS)
    assert model.encode(labelled.test.numpy() * 5 - 2).z_loc.shape == (360, 3)  # data in any range
