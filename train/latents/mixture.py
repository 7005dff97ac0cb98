"""A mixture: a discrete component, and a normal for each."""

from __future__ import annotations

from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.indep_messenger import IndepMessenger
from torch import Tensor, nn

from ..config import ModelConfig
from ..gaussian import diagonal_normal
from .base import COMPONENT_SITE, LATENT_SITE, Latent

_SPREAD = 0.5  # of the components' means at the start: apart, but none out of the data's reach


class Mixture(Latent):
    """p(z) = Σ_c p(c) N(z; loc_c, scale_c²), its weights, means and scales learned; q(z|x) = N(z_loc, z_scale²).

    The component stands in the model alone. Pyro enumerates it and sums it out, exactly: the bound is that of p(x, z),
    with nothing lost for the component.
    """

    enumerated: ClassVar[bool] = True
    plate: ClassVar[type[IndepMessenger]] = pyro.plate  # the weights have no batch, nor has z where c is enumerated

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.logits = nn.Parameter(torch.zeros(config.components))
        self.loc = nn.Parameter(_SPREAD * torch.randn(config.components, config.z_dim))
        self.log_scale = nn.Parameter(torch.zeros(config.components, config.z_dim))

    def sample_prior(self, like: Tensor) -> Tensor:  # noqa: ARG002 - the plate gives the batch size
        """Sample c, and z of its normal."""
        component = pyro.sample(COMPONENT_SITE, dist.Categorical(logits=self.logits))
        given_c = diagonal_normal(self.loc[component], self.log_scale[component].exp())
        z: Tensor = pyro.sample(LATENT_SITE, given_c)
        return z

    def sample_posterior(self, z_loc: Tensor, z_scale: Tensor) -> None:
        """Sample z of N(z_loc, z_scale²)."""
        pyro.sample(LATENT_SITE, diagonal_normal(z_loc, z_scale))

    def posterior(self, z_loc: Tensor, z_scale: Tensor, *_eps: Tensor) -> tuple[Tensor, ...]:
        """Return q(c|x), shape `(batch, components)`.

        It is the best one beside q(z|x): q(c|x) ∝ p(c) exp E_q(z|x)[log N(z; loc_c, scale_c²)], in closed form.
        """
        expected = self._log_joint(z_loc) - 0.5 * (z_scale[:, None] / self.log_scale.exp()).square().sum(-1)
        return (torch.softmax(expected, dim=-1),)

    def log_densities(self, z: Tensor, z_loc: Tensor, z_scale: Tensor, *_upper_eps: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(z), the components summed out, and log q(z|x)."""
        return torch.logsumexp(self._log_joint(z), dim=-1), dist.Normal(z_loc, z_scale).to_event(1).log_prob(z)

    def prior(self, *noise: Tensor) -> Tensor:
        """Return z of the given component."""
        component, eps = noise
        return self.loc[component] + self.log_scale[component].exp() * eps

    @property
    def component_probs(self) -> Tensor:
        """p(c), shape `(components,)`."""
        return torch.softmax(self.logits, dim=0)

    def _log_joint(self, z: Tensor) -> Tensor:
        """Return log p(c) + log N(z; loc_c, scale_c²), shape `(batch, components)`."""
        given_c = dist.Normal(self.loc, self.log_scale.exp()).to_event(1)
        return torch.log_softmax(self.logits, dim=0) + given_c.log_prob(z[:, None])
