"""One standard normal: the reference's latent."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from train._latents._base import LATENT_SITE, Latent


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
        z: Tensor = pyro.sample(LATENT_SITE, _standard_normal(like.new_empty((like.shape[0], self.config.z_dim))))
        return z

    def sample_posterior(self, z_loc: Tensor, z_scale: Tensor) -> None:
        """Sample z of N(z_loc, z_scale²)."""
        pyro.sample(LATENT_SITE, dist.Normal(z_loc, z_scale).to_event(1))

    def log_densities(self, z: Tensor, z_loc: Tensor, z_scale: Tensor, *_upper_eps: Tensor) -> tuple[Tensor, Tensor]:
        """Return log N(z; 0, I) and log N(z; z_loc, z_scale²)."""
        return _standard_normal(z).log_prob(z), dist.Normal(z_loc, z_scale).to_event(1).log_prob(z)

    def prior(self, *noise: Tensor) -> Tensor:
        """Return `eps`: it is z."""
        return noise[0]


def _standard_normal(like: Tensor) -> TorchDistribution:
    normal: TorchDistribution = dist.Normal(torch.zeros_like(like), torch.ones_like(like)).to_event(1)
    return normal
