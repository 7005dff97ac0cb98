"""ELBO, log p(x), scores and the posterior predictive, compared with Pyro's."""

from __future__ import annotations

import math
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyro
import pytest
import torch
from numpy.typing import NDArray
from pyro import poutine
from pyro.infer import Predictive, RenyiELBO, Trace_ELBO
from torch.distributions import Normal, kl_divergence

from edgevae import MANIFEST_FILE, DatasetSpec, InputError, Manifest, Model, Noise, load
from edgevae.export import Source, export_bundle
from edgevae.train import LIKELIHOODS, VAE, Dataset, ModelConfig, elbo_of_each, load_dataset
from edgevae.verify import normal_kl
from tests.conftest import REPOSITORY


@pytest.mark.parametrize("num_particles", [1, 3])
def test_the_elbo_of_a_seed_is_pyros(model: Model, vae: VAE, digits: Dataset, num_particles: int) -> None:
    x = digits.test[:20]
    with pyro.get_param_store().scope(), torch.random.fork_rng([]), torch.no_grad():
        pyro.set_rng_seed(8)
        loss = Trace_ELBO(num_particles=num_particles).loss(vae.model, vae.guide, x)
    found = model.elbo(x.numpy(), seed=8, num_particles=num_particles)
    assert found.shape == (20,)
    assert float(found.sum()) == pytest.approx(-loss, rel=1e-5)


def test_the_log_likelihood_of_a_seed_is_pyros_renyi_bound(model: Model, vae: VAE, digits: Dataset) -> None:
    x = digits.test[:1]
    with pyro.get_param_store().scope(), torch.random.fork_rng([]), torch.no_grad():
        pyro.set_rng_seed(8)
        loss = RenyiELBO(alpha=0, num_particles=50).loss(vae.model, vae.guide, x)
    found = model.log_likelihood(x.numpy(), seed=8, num_particles=50)
    assert float(found[0]) == pytest.approx(-loss, rel=1e-5)


def test_the_bound_rises_with_the_particles_towards_the_same_value(model: Model, digits: Dataset) -> None:
    x = digits.test[:50].numpy()
    one, few, many, other = (
        model.log_likelihood(x, seed, num_particles).mean()
        for seed, num_particles in ((0, 1), (0, 10), (0, 1000), (1, 1000))
    )
    assert one < few < many
    assert many == pytest.approx(other, abs=0.5)
    assert math.isclose(one, model.elbo(x, seed=0).mean(), rel_tol=1e-12)


def test_an_empty_batch_has_no_elbo(model: Model) -> None:
    assert model.elbo(np.empty((0, 64), np.float32), seed=0).shape == (0,)
    assert model.log_likelihood(np.empty((0, 64), np.float32), seed=0, num_particles=2).shape == (0,)


def test_no_particles_are_refused(model: Model) -> None:
    with pytest.raises(InputError, match="num_particles must be at least 1, got 0"):
        model.elbo(np.zeros((1, 64), np.float32), seed=0, num_particles=0)


def test_memory_grows_neither_with_the_particles_nor_with_the_width_of_the_data(model: Model) -> None:
    x = np.zeros((20_000, 64), np.float32)
    peaks = []
    for num_particles in (2, 40):
        tracemalloc.start()
        model.log_likelihood(x, seed=0, num_particles=num_particles)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]
    assert peaks[1] < 2 * x.nbytes


@pytest.mark.parametrize("estimate", ["elbo", "log_likelihood"])
def test_given_noise_takes_the_place_of_a_seed(model: Model, digits: Dataset, estimate: str) -> None:
    x = digits.test[:6].numpy()
    stream = Noise(4)
    eps = np.stack([stream.standard_normal((6, 5)) for _ in range(3)])
    call = getattr(model, estimate)
    np.testing.assert_array_equal(call(x, num_particles=3, eps=eps), call(x, 4, 3))
    assert np.abs(call(x, num_particles=3, eps=np.zeros_like(eps)) - call(x, 4, 3)).max() > 1e-3


def test_rows_with_noise_of_their_own_can_be_scored_together(model: Model, digits: Dataset) -> None:
    x = digits.test[:6].numpy()
    apart = [model.score(row[None], seed=seed) for seed, row in enumerate(x)]
    streams = [Noise(seed) for seed in range(6)]
    eps = np.stack([np.concatenate([stream.standard_normal((1, 5)) for stream in streams]) for _ in range(10)])
    together = model.score(x, eps=eps)
    for part in ("elbo", "reconstruction", "kl"):
        expected = np.concatenate([getattr(score, part) for score in apart])
        np.testing.assert_array_equal(getattr(together, part), expected)
    np.testing.assert_array_equal(model.score(x).elbo, model.score(x, seed=0).elbo)


def test_noise_that_does_not_fit_is_refused(model: Model) -> None:
    x = np.zeros((2, 64), np.float32)
    with pytest.raises(InputError, match="give one of seed and eps, got neither"):
        model.elbo(x)
    with pytest.raises(InputError, match="give one of seed and eps, got both"):
        model.score(x, seed=0, eps=np.zeros((10, 2, 5)))
    with pytest.raises(InputError, match=r"eps must have shape \(3, 2, 5\), got \(10, 2, 5\)"):
        model.elbo(x, num_particles=3, eps=np.zeros((10, 2, 5)))
    with pytest.raises(InputError, match=r"eps must have shape \(3, 2, 5\), got \(2, 5\); add a batch axis"):
        model.elbo(x, num_particles=3, eps=np.zeros((2, 5)))


# The KL divergence


def _normal(seed: int) -> Normal:
    generator = torch.Generator().manual_seed(seed)
    loc = torch.randn((6, 4), generator=generator, dtype=torch.float64)
    return Normal(loc, torch.rand((6, 4), generator=generator, dtype=torch.float64) + 0.1)


def test_normal_kl_is_torchs() -> None:
    p, q = _normal(0), _normal(1)
    found = normal_kl(p.loc.numpy(), p.scale.numpy(), q.loc.numpy(), q.scale.numpy())
    np.testing.assert_allclose(found, kl_divergence(p, q).sum(-1), rtol=1e-12)


def test_normal_kl_is_precise_for_nearly_equal_distributions() -> None:
    scale, excess = np.ones((1, 1)), 1e-7
    found = normal_kl(np.zeros((1, 1)), scale * (1 + excess), np.zeros((1, 1)), scale)
    np.testing.assert_allclose(found, excess**2, rtol=1e-2)  # KL ≈ (r - 1)² for r near 1


# Scores and anomalies


QUANTILES = ((0.001, -90.0), (0.01, -80.0), (0.5, -40.0), (0.999, -10.0))


@pytest.fixture(scope="module")
def scored(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The model of `bundle`, in a bundle that knows how its test images are distributed."""
    spec = DatasetSpec(
        name="digits",
        num_train=1437,
        num_test=360,
        test_elbo_nats=-45.0,
        num_particles=10,
        binarize="none",
        elbo_quantiles=QUANTILES,
    )
    out = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("models") / "scored"))
    manifest = Manifest.decode((out / MANIFEST_FILE).read_bytes())
    (out / MANIFEST_FILE).write_bytes(msgspec.structs.replace(manifest, dataset=spec).encode())
    return load(out, provider="cpu")


def test_the_score_is_the_elbo_in_its_two_parts(model: Model, digits: Dataset) -> None:
    x = digits.test.numpy()
    score = model.score(x, seed=3, num_particles=4)
    np.testing.assert_allclose(score.reconstruction - score.kl, score.elbo, rtol=1e-12)
    np.testing.assert_allclose(score.elbo, model.elbo(x, seed=3, num_particles=4), rtol=1e-9)
    posterior = model.encode(x)
    z_loc, z_scale = np.asarray(posterior.z_loc, np.float64), posterior.z_scale.astype(np.float64)
    kl = 0.5 * (z_loc**2 + z_scale**2 - 1 - 2 * np.log(z_scale)).sum(1)
    many = model.score(x, seed=3, num_particles=400)
    assert np.abs(many.kl - kl).max() < 0.15 * kl.max()
    assert many.kl.mean() == pytest.approx(kl.mean(), rel=0.02)


def test_the_default_score_is_what_the_quantiles_are_made_of(model: Model, vae: VAE, digits: Dataset) -> None:
    expected = elbo_of_each(vae, digits.test, num_particles=10).numpy()
    np.testing.assert_allclose(model.score(digits.test.numpy()).elbo, expected, rtol=1e-4)


def test_thresholds_are_the_quantiles_and_between_them_in_line(scored: Model) -> None:
    assert scored.threshold(0.01) == scored.threshold() == -80.0
    assert scored.threshold(0.001) == -90.0
    assert scored.threshold(0.255) == pytest.approx(-60.0)
    with pytest.raises(InputError, match=r"rate must be from 0\.001 to 0\.999, got 0"):
        scored.threshold(0)


def test_anomalies_are_what_lies_below_the_threshold(scored: Model, digits: Dataset) -> None:
    x = digits.test.numpy()
    elbo = scored.score(x).elbo
    for rate in (0.01, 0.5):
        np.testing.assert_array_equal(scored.is_anomaly(x, rate=rate), elbo < scored.threshold(rate))
    assert scored.is_anomaly(np.zeros((0, 64), np.float32)).shape == (0,)


def test_a_bundle_without_a_distribution_says_so(model: Model) -> None:
    with pytest.raises(InputError, match="holds no distribution of test images; compare score"):
        model.is_anomaly(np.zeros((1, 64)))


def test_noise_is_more_unusual_than_digits_to_a_trained_model() -> None:
    model = load(Path(__file__).parents[2] / "models" / "digits-mlp", provider="cpu")
    digits = load_dataset("digits").test.numpy()
    noise = np.random.default_rng(0).random(digits.shape, np.float32)
    assert model.is_anomaly(digits).mean() < 0.05
    assert model.is_anomaly(noise).all()


@pytest.mark.parametrize("rate", ["0.01", None, np.array([0.01, 0.02]), True, 0.01j])
def test_an_invalid_rate_is_refused(scored: Model, rate: Any) -> None:
    with pytest.raises(InputError, match="rate must be a number"):
        scored.threshold(rate)


def test_a_row_that_is_too_far_out_for_float32_is_an_anomaly() -> None:
    model = load(REPOSITORY / "models" / "fashion-normal", provider="cpu")
    x = np.stack([np.zeros(784, np.float32), np.full(784, 1e4, np.float32)])
    assert np.isnan(model.score(x).elbo).tolist() == [False, True]
    assert model.is_anomaly(x, rate=0.999).tolist() == [model.score(x).elbo[0] < model.threshold(0.999), True]


@pytest.mark.parametrize("count", [np.uint8(100), np.int8(100), np.uint64(100)])
def test_a_small_integer_type_loses_nothing_of_a_bound(model: Model, digits: Dataset, count: Any) -> None:
    x = digits.test[:3].numpy()
    np.testing.assert_array_equal(model.log_likelihood(x, 0, count), model.log_likelihood(x, 0, 100))


def test_an_invalid_seed_is_refused_even_for_no_samples(model: Model) -> None:
    with pytest.raises(InputError, match="seed must be an integer"):
        model.posterior_predictive(np.zeros((2, 64), np.float32), 0, "1")  # type: ignore[arg-type]  # wrong on purpose


# The posterior predictive


NUM_SAMPLES = 2000
Draws = NDArray[np.float64]


def differ(ours: Draws, theirs: Draws) -> bool:
    """Whether means, or standard deviations, are further apart than chance leaves them; shape `(samples, values)`.

    The standard deviation is compared over all values together, where a scale that is wrong by a few per cent shows.
    """
    error = np.sqrt((ours.var(0) + theirs.var(0)) / len(ours)) + 1e-6
    means = np.abs(ours.mean(0) - theirs.mean(0)) / error
    spread = ours.std(0).mean() / theirs.std(0).mean()
    return bool(means.max() > 5.5 or abs(spread - 1) > 0.02)


# Each likelihood, each latent, with labels and without, data in [0, 1] and in any range.
MODELS: dict[str, dict[str, Any]] = {
    "bernoulli": {"latent": "mixture", "components": 3},
    "continuous-bernoulli": {"num_classes": 10},
    "normal": {"latent": "hierarchical", "upper_dims": (3,), "data_loc": 0.3, "data_scale": 0.4},
    "categorical": {"levels": 4},
}


SLOW = ("continuous-bernoulli", "categorical")
PAIRS = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in LIKELIHOODS]


@pytest.fixture(scope="module", params=PAIRS)
def pair(
    request: pytest.FixtureRequest, digits: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[VAE, Model]:
    with torch.random.fork_rng([]):
        torch.manual_seed(7)
        vae = VAE(ModelConfig((1, 8, 8), 5, 16, likelihood=request.param, **MODELS[request.param])).eval()
        with torch.no_grad():
            for parameter in vae.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    out = tmp_path_factory.mktemp("models") / "model"
    labels = torch.arange(len(digits.test)) % 10 if vae.config.num_classes else None
    export_bundle(Source("model", vae, digits.test, "test images of digits", None, labels), out)
    return vae, load(out, provider="cpu")


@pytest.fixture(scope="module")
def theirs(pair: tuple[VAE, Model], digits: Dataset) -> Draws:
    """Draws of Pyro's Predictive for three images."""
    vae, _ = pair
    with pyro.get_param_store().scope(), torch.random.fork_rng([]):
        pyro.set_rng_seed(1)
        predictive = Predictive(poutine.uncondition(vae.model), guide=vae.guide, num_samples=NUM_SAMPLES, parallel=True)
        y = [torch.arange(3)] if vae.config.num_classes else []
        obs: NDArray[np.float32] = predictive(digits.test[:3], *y)["obs"].numpy()
    return obs.astype(np.float64)


def test_shapes_and_distribution_are_those_of_pyros_predictive(
    pair: tuple[VAE, Model], theirs: Draws, digits: Dataset
) -> None:
    labels = {"y": np.arange(3)} if pair[1].num_classes else {}
    ours = pair[1].posterior_predictive(digits.test[:3].numpy(), NUM_SAMPLES, seed=0, **labels)
    assert ours.shape == theirs.shape == (NUM_SAMPLES, 3, 64)
    assert ours.dtype == np.float32
    for row in range(3):
        assert not differ(ours[:, row].astype(np.float64), theirs[:, row])


def test_the_comparison_detects_a_wrong_scale_or_mean(pair: tuple[VAE, Model], theirs: Draws, digits: Dataset) -> None:
    labels = {"y": 0} if pair[1].num_classes else {}
    drawn = pair[1].posterior_predictive(digits.test[:1].numpy(), NUM_SAMPLES, seed=0, **labels)
    ours = drawn[:, 0].astype(np.float64)
    loc = ours.mean(0)
    assert differ(loc + 1.05 * (ours - loc), theirs[:, 0])
    assert differ(ours + 0.1, theirs[:, 0])


def test_the_same_seed_gives_the_same_draws_and_fewer_are_the_first_ones(model: Model, digits: Dataset) -> None:
    x = digits.test[:4].numpy()
    draws = model.posterior_predictive(x, 5, seed=3)
    np.testing.assert_array_equal(model.posterior_predictive(x, 5, seed=3), draws)
    np.testing.assert_array_equal(model.posterior_predictive(x, 2, seed=3), draws[:2])
    assert np.abs(model.posterior_predictive(x, 5, seed=4) - draws).max() == 1
    assert set(np.unique(draws)) == {0.0, 1.0}  # a Bernoulli's observations
    assert model.posterior_predictive(x, 0, seed=3).shape == (0, 4, 64)


def test_no_number_of_samples_is_refused(model: Model) -> None:
    with pytest.raises(InputError, match="num_samples must not be negative, got -1"):
        model.posterior_predictive(np.zeros((1, 64)), -1, seed=0)
