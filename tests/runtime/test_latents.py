"""Hierarchies, mixtures and labels on the device, beside Pyro's own."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine

from edgevae import InputError, Latents, Model, Noise, load
from edgevae.export import Source, export_bundle
from edgevae.train import VAE, Dataset, ModelConfig, elbo_terms, load_dataset, objective_of
from edgevae.train.elbo import draw_prior

CHOICES: dict[str, dict[str, Any]] = {
    "hierarchical": {"latent": "hierarchical", "upper_dims": (4, 5)},
    "mixture": {"latent": "mixture", "components": 3},
    "conditional": {"num_classes": 10},
}
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def labelled() -> Dataset:
    return load_dataset("digits", labels=True)


def pair(name: str, labelled: Dataset, folder: Path) -> tuple[VAE, Model]:
    """An untrained model, its weights spread so that every part shows, and its bundle."""
    with torch.random.fork_rng([]):
        torch.manual_seed(7)
        vae = VAE(ModelConfig((1, 8, 8), z_dim=5, hidden_dim=16, **CHOICES[name])).eval()
        with torch.no_grad():
            for parameter in vae.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    labels = labelled.test_labels if name == "conditional" else None
    export_bundle(Source(name, vae, labelled.test, "test images of digits", None, labels), folder / name)
    return vae, load(folder / name, provider="cpu")


@pytest.fixture(scope="module")
def hierarchical(labelled: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[VAE, Model]:
    return pair("hierarchical", labelled, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def mixture(labelled: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[VAE, Model]:
    return pair("mixture", labelled, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def conditional(labelled: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[VAE, Model]:
    return pair("conditional", labelled, tmp_path_factory.mktemp("models"))


def pyros_prior(vae: VAE, x: torch.Tensor, seed: int, *y: torch.Tensor, **given: torch.Tensor) -> np.ndarray:
    """What Pyro's model decodes from its prior, from a seed."""
    with pyro.get_param_store().scope(), torch.random.fork_rng([]), torch.no_grad():
        pyro.set_rng_seed(seed)
        return poutine.condition(vae.model, data=given)(x, *y).numpy()


def test_generate_is_pyros_model_of_the_same_seed(
    hierarchical: tuple[VAE, Model], mixture: tuple[VAE, Model], conditional: tuple[VAE, Model], labelled: Dataset
) -> None:
    x, y = labelled.test[:9], torch.arange(9)
    vae, model = hierarchical
    np.testing.assert_allclose(model.generate(9, seed=3), pyros_prior(vae, x, 3), atol=TOLERANCE)
    vae, model = mixture
    expected = pyros_prior(vae, x, 3, component=torch.full((9,), 2))
    np.testing.assert_allclose(model.generate(9, seed=3, component=2), expected, atol=TOLERANCE)
    vae, model = conditional
    np.testing.assert_allclose(model.generate(9, seed=3, y=y.numpy()), pyros_prior(vae, x, 3, y), atol=TOLERANCE)


def test_a_mixtures_components_are_drawn_with_their_probabilities(mixture: tuple[VAE, Model]) -> None:
    vae, model = mixture
    probs = model.component_probs
    np.testing.assert_allclose(probs, vae.latent.component_probs.detach(), atol=1e-7)
    n = 2000
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        uniform = torch.rand(n, generator=generator)
        component = (uniform[:, None] >= vae.latent.component_probs.cumsum(0)[:-1]).sum(1)
        eps = torch.randn((n, 5), generator=generator)
        expected = vae.decoder(draw_prior(vae.latent, [eps], component))
    np.testing.assert_allclose(model.generate(n, seed=5), expected, atol=TOLERANCE)
    np.testing.assert_allclose(np.bincount(component.numpy()) / n, probs, atol=0.04)


def test_each_levels_posterior_is_pyros(hierarchical: tuple[VAE, Model], labelled: Dataset) -> None:
    vae, model = hierarchical
    x = labelled.test[:9]
    eps = [torch.randn((9, size), generator=torch.Generator().manual_seed(1)) for size in (5, 4, 5)]
    terms = elbo_terms(vae, x, eps)
    posterior = model.encode(x.numpy(), eps=[level.numpy() for level in eps[:2]])
    assert [level.z_loc.shape for level in posterior.levels] == [(9, 5), (9, 4), (9, 5)]
    for level, z_loc, z_scale in zip(posterior.levels, terms.z_loc, terms.z_scale, strict=True):
        np.testing.assert_allclose(level.z_loc, z_loc.detach(), atol=TOLERANCE, rtol=TOLERANCE)
        np.testing.assert_allclose(level.z_scale, z_scale.detach(), atol=TOLERANCE, rtol=TOLERANCE)


def test_a_seed_draws_the_levels_as_the_guide_does(hierarchical: tuple[VAE, Model], labelled: Dataset) -> None:
    vae, model = hierarchical
    x = labelled.test[:9]
    with pyro.get_param_store().scope(), torch.random.fork_rng([]), torch.no_grad():
        pyro.set_rng_seed(6)
        guide = poutine.trace(vae.guide).get_trace(x)
    site: Any = guide.nodes["latent_3"]["fn"]
    posterior = model.encode(x.numpy(), seed=6)
    np.testing.assert_allclose(posterior.upper[1].z_loc, site.base_dist.loc, atol=1e-4)
    means = model.encode(x.numpy())
    assert np.abs(means.upper[0].z_loc - posterior.upper[0].z_loc).max() > 1e-3
    np.testing.assert_array_equal(means.z_loc, posterior.z_loc)


@pytest.mark.parametrize("name", list(CHOICES))
def test_reconstruct_and_elbo_of_a_seed_are_pyros(name: str, request: pytest.FixtureRequest, labelled: Dataset) -> None:
    vae, model = request.getfixturevalue(name)
    assert labelled.test_labels is not None
    x, y = labelled.test[:600], [labelled.test_labels[:600]] if name == "conditional" else []
    labels = {"y": y[0].numpy()} if y else {}
    statements, elbo = objective_of(vae, 2)
    total_loss: Any = elbo.loss
    with pyro.get_param_store().scope(), torch.random.fork_rng([]), torch.no_grad():
        pyro.set_rng_seed(4)
        expected = vae.reconstruct_img(x, *y)
        pyro.set_rng_seed(8)
        loss = total_loss(statements, vae.guide, x, *y)
    np.testing.assert_allclose(model.reconstruct(x.numpy(), seed=4, **labels), expected, atol=TOLERANCE)
    found = model.elbo(x.numpy(), seed=8, num_particles=2, **labels)
    assert float(found.sum()) == pytest.approx(-loss, rel=1e-4)


def test_given_noise_of_all_levels_takes_the_place_of_a_seed(
    hierarchical: tuple[VAE, Model], labelled: Dataset
) -> None:
    _, model = hierarchical
    x = labelled.test[:6].numpy()
    stream = Noise(4)
    draws = [[stream.standard_normal((6, size)) for size in (5, 4, 5)] for _ in range(2)]
    eps = [np.stack(level) for level in zip(*draws, strict=True)]
    np.testing.assert_array_equal(model.elbo(x, num_particles=2, eps=eps), model.elbo(x, 4, 2))
    with pytest.raises(InputError, match="eps must be a list of the noise of 3 levels, z's first"):
        model.elbo(x, num_particles=2, eps=eps[0])


def test_a_mixtures_posterior_holds_the_component_probs(mixture: tuple[VAE, Model], labelled: Dataset) -> None:
    vae, model = mixture
    x = labelled.test[:9]
    with torch.no_grad():
        z_loc, z_scale = (each[:, None] for each in vae.encoder(x))
        loc, scale = vae.latent.get_parameter("loc"), vae.latent.get_parameter("log_scale").exp()
        # E_q[log N(z; loc, scale²)] up to what all components share
        log_density = -scale.log() - ((z_loc - loc).square() + z_scale.square()) / (2 * scale.square())
        expected = torch.softmax(vae.latent.component_probs.log() + log_density.sum(-1), dim=-1)
    found = model.encode(x.numpy()).component_probs
    assert found is not None
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)


def test_plain_models_have_no_upper_levels_and_no_components(model: Model) -> None:
    posterior = model.encode(np.zeros((2, 64)))
    assert posterior.upper == ()
    assert posterior.component_probs is None
    assert posterior.levels[0].z_loc is posterior.z_loc
    assert model.component_probs.shape == (0,)
    with pytest.raises(InputError, match="upper levels of a hierarchy, and this model has one level"):
        model.encode(np.zeros((2, 64)), seed=0)
    with pytest.raises(InputError, match="component must not be given: this model's latent is normal"):
        model.generate(2, seed=0, component=0)
    with pytest.raises(InputError, match="y must not be given: this model sees no labels"):
        model.generate(2, seed=0, y=0)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "y is needed: this model sees labels, integers from 0 to 9"),
        (10, "y must be from 0 to 9, got 10 to 10"),
        (-1, "y must be from 0 to 9, got -1"),
        ([3, 11], "y must be from 0 to 9, got 3 to 11"),
        ([3], r"y must be one integer or have shape \(2,\), got \(1,\)"),
        ([[3], [4]], r"y must be one integer or have shape \(2,\), got \(2, 1\)"),
        (3.0, "y must be integers, got dtype float64"),
        ("3", "y must be an array of numbers, got text, '3'"),
        (True, "y must be integers, got dtype bool"),
    ],
)
def test_labels_that_do_not_fit_are_refused(conditional: tuple[VAE, Model], y: Any, message: str) -> None:
    _, model = conditional
    x, z = np.zeros((2, 64), np.float32), np.zeros((2, 5), np.float32)
    calls: list[Callable[[], object]] = [
        lambda: model.encode(x, y=y),
        lambda: model.decode(z, y=y),
        lambda: model.reconstruct(x, y=y),
        lambda: model.generate(2, seed=0, y=y),
        lambda: model.elbo(x, seed=0, y=y),
        lambda: model.log_likelihood(x, seed=0, num_particles=1, y=y),
        lambda: model.posterior_predictive(x, 1, seed=0, y=y),
    ]
    for call in calls:
        with pytest.raises(InputError, match=message):
            call()


def test_one_label_stands_for_all_rows(conditional: tuple[VAE, Model]) -> None:
    _, model = conditional
    many = model.generate(4, seed=0, y=np.full(4, 7, np.uint8))
    np.testing.assert_array_equal(model.generate(4, seed=0, y=7), many)
    assert np.abs(model.generate(4, seed=0, y=6) - many).max() > 1e-3


def test_components_and_noise_of_levels_that_do_not_fit_are_refused(
    mixture: tuple[VAE, Model], hierarchical: tuple[VAE, Model]
) -> None:
    with pytest.raises(InputError, match="component must be from 0 to 2, got 3 to 3"):
        mixture[1].generate(2, seed=0, component=3)
    x = np.zeros((2, 64), np.float32)
    with pytest.raises(InputError, match="eps must be a list of the noise of 2 levels, all but the highest, got 1"):
        hierarchical[1].encode(x, eps=[np.zeros((2, 5))])
    with pytest.raises(InputError, match=r"eps must have shape \(2, 4\), got \(2, 5\)"):
        hierarchical[1].encode(x, eps=[np.zeros((2, 5)), np.zeros((2, 5))])
    with pytest.raises(InputError, match="eps must be a list of the noise of 2 levels, all but the highest, got float"):
        hierarchical[1].encode(x, eps=0.5)  # type: ignore[arg-type]  # that is the point
    with pytest.raises(InputError, match="seed must be an integer, got bool"):
        hierarchical[1].encode(x, seed=False)
    with pytest.raises(InputError, match="seed and eps were both given"):
        hierarchical[1].encode(x, seed=0, eps=[np.zeros((2, 5)), np.zeros((2, 4))])


@pytest.mark.parametrize("name", ["hierarchical", "mixture"])
def test_an_empty_batch_gives_an_empty_result(name: str, request: pytest.FixtureRequest) -> None:
    _, model = request.getfixturevalue(name)
    empty = np.empty((0, 64), np.float32)
    assert model.generate(0, seed=0).shape == (0, 64)
    assert model.elbo(empty, seed=0).shape == (0,)
    assert all(level.z_loc.shape[0] == 0 for level in model.encode(empty).levels)
    assert model.posterior_predictive(empty, 3, seed=0).shape == (3, 0, 64)


def test_an_upper_level_is_refused_by_the_decoder_that_takes_z(
    hierarchical: tuple[VAE, Model], labelled: Dataset
) -> None:
    _, model = hierarchical
    posterior = model.encode(labelled.test[:2].numpy())
    assert model.decode(posterior.z_loc).shape == (2, 64)
    assert posterior.upper[1].z_loc.shape == posterior.z_loc.shape, "the shape does not tell them apart"
    with pytest.raises(InputError, match="z is of level 3 of the hierarchy; decode takes level 1, z itself"):
        model.decode(posterior.upper[1].z_loc)


def test_a_file_that_is_damaged_anywhere_is_refused(tmp_path: Path) -> None:
    Latents.of(np.ones((3, 4), np.float32), "a" * 64).save(tmp_path / "z.npz")
    whole, dice = (tmp_path / "z.npz").read_bytes(), np.random.RandomState(0)
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[dice.randint(len(whole))] = dice.randint(256)
        (tmp_path / "z.npz").write_bytes(damaged)
        with contextlib.suppress(InputError):
            assert isinstance(Latents.load(tmp_path / "z.npz"), Latents)
    with zipfile.ZipFile(tmp_path / "z.npz", "w") as archive:
        archive.writestr("z.npy", b"no array")
    with pytest.raises(InputError, match=r"z\.npz must be an .* cannot be read: 'z\.npy' is no array"):
        Latents.load(tmp_path / "z.npz")
