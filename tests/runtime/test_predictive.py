"""The posterior predictive, beside Pyro's `Predictive`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pytest
import torch
from numpy.typing import NDArray
from pyro import poutine
from pyro.infer import Predictive

from edgevae import InputError, Model, load
from edgevae.export import Source, export_bundle
from edgevae.train import LIKELIHOODS, VAE, Dataset, ModelConfig

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


@pytest.fixture(scope="module", params=list(LIKELIHOODS))
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
    """Draws of Pyro's Predictive for three images, in the units of the data."""
    vae, _ = pair
    with pyro.get_param_store().scope(), torch.random.fork_rng([]):
        pyro.set_rng_seed(1)
        predictive = Predictive(poutine.uncondition(vae.model), guide=vae.guide, num_samples=NUM_SAMPLES)
        y = [torch.arange(3)] if vae.config.num_classes else []
        obs: NDArray[np.float32] = predictive(digits.test[:3], *y)["obs"].numpy()
    return obs.astype(np.float64) / (vae.config.levels - 1 if vae.config.likelihood == "categorical" else 1)


def test_shapes_and_distribution_are_those_of_pyros_predictive(
    pair: tuple[VAE, Model], theirs: Draws, digits: Dataset
) -> None:
    labels = {"y": np.arange(3)} if pair[1].num_classes else {}
    ours = pair[1].posterior_predictive(digits.test[:3].numpy(), NUM_SAMPLES, seed=0, **labels)
    assert ours.shape == theirs.shape == (NUM_SAMPLES, 3, 64)
    assert ours.dtype == np.float32
    for row in range(3):
        assert not differ(ours[:, row].astype(np.float64), theirs[:, row])


def test_a_wrong_scale_or_a_wrong_mean_would_be_seen(pair: tuple[VAE, Model], theirs: Draws, digits: Dataset) -> None:
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
