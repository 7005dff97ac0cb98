"""The reference: Pyro's own numbers."""

from __future__ import annotations

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam  # type: ignore[attr-defined]  # Pyro makes its optimizers at import

from export import make_reference, pyro_elbo
from runtime import _nats
from train import VAE, Dataset


def test_the_rows_are_samples_zeros_and_ones(vae: VAE, digits: Dataset) -> None:
    reference = make_reference(vae, digits.test)
    assert list(reference.case[-3:]) == ["sample", "zeros", "ones"]
    np.testing.assert_array_equal(reference.x[:254], digits.test[:254].flatten(1).numpy())
    assert not reference.x[254].any()
    assert (reference.x[255] == 1).all()
    np.testing.assert_allclose(reference.z, reference.z_loc + reference.z_scale * reference.eps, atol=1e-6)


def test_the_elbo_is_the_one_that_svi_trains_on(vae: VAE, digits: Dataset) -> None:
    x = digits.test[:20]
    with pyro.get_param_store().scope(), torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(3)
        loss = SVI(vae.model, vae.guide, Adam({}), Trace_ELBO()).evaluate_loss(x)
        torch.manual_seed(3)
        z_loc, z_scale = vae.encoder(x)
        z = z_loc + z_scale * torch.randn(20, 5)
        elbo = pyro_elbo(vae, x, z)
    assert elbo.shape == (20,)
    assert float(elbo.sum()) == pytest.approx(-loss, rel=1e-5)


def test_the_runtimes_elbo_is_pyros(vae: VAE, digits: Dataset) -> None:
    reference = make_reference(vae, digits.test)
    arrays = (reference.x, reference.z, reference.z_loc, reference.z_scale)
    x, z, z_loc, z_scale = (array.astype(np.float64) for array in arrays)
    found = _nats.elbo(x, z, z_loc, z_scale, reference.loc_img)
    np.testing.assert_allclose(found, reference.elbo, rtol=1e-5)
