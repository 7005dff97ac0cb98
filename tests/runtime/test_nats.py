"""The quantities in nats beside torch.distributions."""

from __future__ import annotations

import numpy as np
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from runtime import _nats


def _normal(seed: int) -> Normal:
    generator = torch.Generator().manual_seed(seed)
    loc = torch.randn((6, 4), generator=generator, dtype=torch.float64)
    return Normal(loc, torch.rand((6, 4), generator=generator, dtype=torch.float64) + 0.1)


def test_normal_log_prob_is_torchs() -> None:
    q, value = _normal(0), torch.randn((6, 4), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = _nats.normal_log_prob(value.numpy(), q.loc.numpy(), q.scale.numpy())
    np.testing.assert_allclose(found, q.log_prob(value).sum(-1), rtol=1e-12)


def test_normal_kl_is_torchs() -> None:
    p, q = _normal(0), _normal(1)
    found = _nats.normal_kl(p.loc.numpy(), p.scale.numpy(), q.loc.numpy(), q.scale.numpy())
    np.testing.assert_allclose(found, kl_divergence(p, q).sum(-1), rtol=1e-12)


def test_normal_kl_keeps_its_digits_where_the_two_are_nearly_equal() -> None:
    scale, excess = np.ones((1, 1)), 1e-7
    found = _nats.normal_kl(np.zeros((1, 1)), scale * (1 + excess), np.zeros((1, 1)), scale)
    np.testing.assert_allclose(found, excess**2, rtol=1e-2)  # KL ≈ (r - 1)² for r near 1


def test_bernoulli_log_prob_is_torchs_for_grey_pixels_and_for_certain_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    x, probs = torch.rand((6, 9), generator=generator), torch.rand((6, 9), generator=generator)
    probs[0], probs[1], probs[2] = 0.0, 1.0, 1e-12
    expected = Bernoulli(probs, validate_args=False).log_prob(x).sum(-1)
    found = _nats.bernoulli_log_prob(x.numpy().astype(np.float64), probs.numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-5)
