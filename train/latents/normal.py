"""One standard normal: the reference's latent."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ..gaussian import diagonal_normal, standard_normal
from .base import LATENT_SITE, Latent


def kl_to_standard_normal(loc: Tensor, scale: Tensor) -> Tensor:
    """Return KL(N(loc, scale²) ‖ N(0, 1)) of each value, in nats (Kingma & Welling, 2013, appendix B).

    Args:
        loc: Means, any shape.
        scale: Standard deviations, positive, of the same shape.
    """
    kl: Tensor = (loc.square() + scale.square() - 1) / 2 - scale.log()
    return kl


class Normal(Latent):
    """p(z) = N(0, I), q(z|x) = N(z_loc, z_scale²)."""

    def sample_prior(self, like: Tensor) -> Tensor:
        """Sample z of N(0, I)."""
        z: Tensor = pyro.sample(LATENT_SITE, standard_normal((like.shape[0], self.config.z_dim), like))
        return z

    def sample_posterior(self, z_loc: Tensor, z_scale: Tensor) -> None:
        """Sample z of N(z_loc, z_scale²)."""
        pyro.sample(LATENT_SITE, diagonal_normal(z_loc, z_scale))

    def log_densities(self, z: Tensor, z_loc: Tensor, z_scale: Tensor, *_upper_eps: Tensor) -> tuple[Tensor, Tensor]:
        """Return log N(z; 0, I) and log N(z; z_loc, z_scale²)."""
        standard = dist.Normal(torch.zeros_like(z), torch.ones_like(z))
        log_pz: Tensor = standard.to_event(1).log_prob(z)
        return log_pz, dist.Normal(z_loc, z_scale).to_event(1).log_prob(z)

    def prior(self, *noise: Tensor) -> Tensor:
        """Return `eps`: it is z."""
        return noise[0]
