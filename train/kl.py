"""The KL of each latent dimension."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Normal as NormalDistribution

from .latents import Hierarchical, Latent, Mixture, kl_to_standard_normal
from .terms import ElboTerms


def kl_of_dims(latent: Latent, terms: ElboTerms) -> Tensor:
    """Return what each dimension of z costs, in nats, float64, shape `(batch, z_dim)`.

    A `normal` latent has KL(q(z_d|x) ‖ N(0, 1)) = (z_loc² + z_scale² - 1) / 2 - log z_scale, whose sum over the
    dimensions is the whole KL. The other two are estimated from the draw of z:

    - `hierarchical`: log q(z_d|x) - log p(z_d|z_2), of z's own level. The levels above add their part to the whole. A
      single dimension may come out below 0, because q(z|x) does not see z_2 and p(z|z_2) does.
    - `mixture`: log q(z_d|x) - log Σ_c p(c) N(z_d; loc_cd, scale_cd²), against the marginal of p(z) in this dimension.
      Its mean is a KL and tells how much a dimension is used, but the components tie the dimensions together, so that
      the sum is not the whole KL.

    Args:
        latent: The model's.
        terms: Those of a batch.
    """
    z, loc, scale = (level[0].double() for level in (terms.z, terms.z_loc, terms.z_scale))
    log_qz_x = _log_normal(z, loc, scale)
    if isinstance(latent, Hierarchical):
        return log_qz_x - _log_normal(z, *latent.downward[0](terms.z[1]))
    if isinstance(latent, Mixture):
        given_c = _log_normal(z[:, None], latent.loc, latent.log_scale.exp())
        return log_qz_x - torch.logsumexp(torch.log_softmax(latent.logits, dim=0)[:, None] + given_c, dim=1)
    return kl_to_standard_normal(loc, scale)


def _log_normal(z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    log_density: Tensor = NormalDistribution(loc, scale, validate_args=False).log_prob(z)
    return log_density
