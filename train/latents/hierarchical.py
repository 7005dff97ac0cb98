"""A hierarchy of normal levels."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..config import ModelConfig
from ..gaussian import diagonal_normal, standard_normal
from .base import Latent, site_names


class Hierarchical(Latent):
    """Levels z_1 = z to z_L, each normal given its neighbour (Sønderby et al., 2016, give both directions).

    p(z_L) = N(0, I), p(z_l | z_{l+1}) = N(loc, scale²), and the guide bottom-up: q(z_1|x), q(z_{l+1} | z_l). The two
    draw in opposite orders, so the objective is `Trace_ELBO`'s: the closed form of the KL would compare densities that
    are conditional on different draws.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self._sites = site_names(len(config.z_dims))
        neighbours = list(zip(config.z_dims, config.z_dims[1:], strict=False))
        self.upward = nn.ModuleList(_Step(lower, config.hidden_dim, upper) for lower, upper in neighbours)
        self.downward = nn.ModuleList(_Step(upper, config.hidden_dim, lower) for lower, upper in neighbours)

    def sample_prior(self, like: Tensor) -> Tensor:
        """Sample the levels, the highest first; return the lowest."""
        z: Tensor = pyro.sample(self._sites[-1], standard_normal((like.shape[0], self.config.z_dims[-1]), like))
        for level in reversed(range(len(self.downward))):
            z = pyro.sample(self._sites[level], diagonal_normal(*self.downward[level](z)))
        return z

    def sample_posterior(self, z_loc: Tensor, z_scale: Tensor) -> None:
        """Sample the levels, the lowest first."""
        z = pyro.sample(self._sites[0], diagonal_normal(z_loc, z_scale))
        for level, step in enumerate(self.upward):
            z = pyro.sample(self._sites[level + 1], diagonal_normal(*step(z)))

    def posterior(self, z_loc: Tensor, z_scale: Tensor, *eps: Tensor) -> tuple[Tensor, ...]:
        """Return the parameters of q(z_{l+1} | z_l) for each level above z, z_l drawn with `eps`."""
        found: list[Tensor] = []
        for step, noise in zip(self.upward, eps, strict=True):
            z_loc, z_scale = step(z_loc + z_scale * noise)
            found += z_loc, z_scale
        return tuple(found)

    def log_densities(self, z: Tensor, z_loc: Tensor, z_scale: Tensor, *upper_eps: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p and log q of all levels together."""
        log_qz_x = dist.Normal(z_loc, z_scale).to_event(1).log_prob(z)
        log_pz = torch.zeros_like(log_qz_x)
        for level, (step, noise) in enumerate(zip(self.upward, upper_eps, strict=True)):
            loc, scale = step(z)
            above = loc + scale * noise
            log_qz_x = log_qz_x + dist.Normal(loc, scale).to_event(1).log_prob(above)
            log_pz = log_pz + dist.Normal(*self.downward[level](above)).to_event(1).log_prob(z)
            z = above
        log_p_top = dist.Normal(torch.zeros_like(z), torch.ones_like(z)).to_event(1).log_prob(z)
        return log_pz + log_p_top, log_qz_x

    def prior(self, *noise: Tensor) -> Tensor:
        """Return z_1 for the noise of each level, the lowest first."""
        *lower, z = noise
        for step, eps in zip(reversed(self.downward), reversed(lower), strict=True):
            loc, scale = step(z)
            z = loc + scale * eps
        return z


class _Step(nn.Module):
    """From one level to the parameters of the next: the reference's encoder, of the sizes of latents."""

    def __init__(self, inputs: int, hidden_dim: int, outputs: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden_dim)
        self.fc21 = nn.Linear(hidden_dim, outputs)
        self.fc22 = nn.Linear(hidden_dim, outputs)
        self.softplus = nn.Softplus()

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation."""
        hidden = self.softplus(self.fc1(z))
        return self.fc21(hidden).to(z.dtype), torch.exp(self.fc22(hidden)).to(z.dtype)
