"""The ELBO and log p(x) on the device, beside Pyro's."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO

from edgevae import InputError, Model, Noise
from edgevae.train import VAE, Dataset


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
