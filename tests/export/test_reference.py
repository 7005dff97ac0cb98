"""The reference: Pyro's own numbers."""

from __future__ import annotations

import copy

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam  # type: ignore[attr-defined]  # Pyro makes its optimizers at import

from edgevae.export import make_reference
from edgevae.train import LIKELIHOODS, VAE, Dataset, ModelConfig, elbo_terms


def test_the_rows_are_samples_zeros_and_ones(vae: VAE, digits: Dataset) -> None:
    reference = make_reference(vae, digits.test)
    assert list(reference.case[-3:]) == ["sample", "zeros", "ones"]
    np.testing.assert_array_equal(reference["x"][:254], digits.test[:254].flatten(1).numpy())
    assert not reference["x"][254].any()
    assert (reference["x"][255] == 1).all()
    z = reference["z_loc"] + reference["z_scale"] * reference["eps"]
    np.testing.assert_allclose(reference["z"], z, atol=1e-6)


def test_the_reference_is_that_of_evaluation_whatever_mode_the_model_is_in(vae: VAE, digits: Dataset) -> None:
    expected = make_reference(vae, digits.test)
    training = copy.deepcopy(vae).train()
    found = make_reference(training, digits.test)
    assert training.training
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("likelihood", list(LIKELIHOODS))
def test_the_terms_add_up_to_the_elbo_that_svi_trains_on(digits: Dataset, likelihood: str) -> None:
    x = digits.test[:20]
    with pyro.get_param_store().scope(), torch.random.fork_rng([]), torch.no_grad():
        vae = VAE(ModelConfig((1, 8, 8), z_dim=5, hidden_dim=16, likelihood=likelihood))
        torch.manual_seed(3)
        loss = SVI(vae.model, vae.guide, Adam({}), Trace_ELBO()).evaluate_loss(x)
        torch.manual_seed(3)
        terms = elbo_terms(vae, x, [torch.randn(20, 5)])
    assert terms.log_px_z.shape == (20,)
    assert float(terms.elbo.sum()) == pytest.approx(-loss, rel=1e-5)
