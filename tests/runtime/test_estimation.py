"""How unusual an observation is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevae import DatasetSpec, InputError, Model, load
from edgevae.export import Source, export_bundle
from edgevae.train import VAE, Dataset, elbo_of_each, load_dataset
from tests.conftest import REPOSITORY

QUANTILES = ((0.001, -90.0), (0.01, -80.0), (0.5, -40.0), (0.999, -10.0))


@pytest.fixture(scope="module")
def scored(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The model of `source`, in a bundle that knows how its test images are distributed."""
    spec = DatasetSpec(
        name="digits",
        num_train=1437,
        num_test=360,
        test_elbo_nats=-45.0,
        num_particles=10,
        binarize="none",
        elbo_quantiles=QUANTILES,
    )
    out = tmp_path_factory.mktemp("models") / "scored"
    export_bundle(dataclasses.replace(source, dataset=spec), out)
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
def test_a_rate_that_is_no_number_is_refused(scored: Model, rate: Any) -> None:
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


def test_no_samples_take_no_wrong_seed(model: Model) -> None:
    with pytest.raises(InputError, match="seed must be an integer"):
        model.posterior_predictive(np.zeros((2, 64), np.float32), 0, "1")  # type: ignore[arg-type]  # wrong on purpose
