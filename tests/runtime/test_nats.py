"""The quantities in nats beside torch.distributions."""

from __future__ import annotations

import numpy as np
import torch
from torch.distributions import Normal, kl_divergence

from edgevae.verify import normal_kl


def _normal(seed: int) -> Normal:
    generator = torch.Generator().manual_seed(seed)
    loc = torch.randn((6, 4), generator=generator, dtype=torch.float64)
    return Normal(loc, torch.rand((6, 4), generator=generator, dtype=torch.float64) + 0.1)


def test_normal_kl_is_torchs() -> None:
    p, q = _normal(0), _normal(1)
    found = normal_kl(p.loc.numpy(), p.scale.numpy(), q.loc.numpy(), q.scale.numpy())
    np.testing.assert_allclose(found, kl_divergence(p, q).sum(-1), rtol=1e-12)


def test_normal_kl_keeps_its_digits_where_the_two_are_nearly_equal() -> None:
    scale, excess = np.ones((1, 1)), 1e-7
    found = normal_kl(np.zeros((1, 1)), scale * (1 + excess), np.zeros((1, 1)), scale)
    np.testing.assert_allclose(found, excess**2, rtol=1e-2)  # KL ≈ (r - 1)² for r near 1
