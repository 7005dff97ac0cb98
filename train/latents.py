"""Latents p(z) and q(z|x). To add one: a subclass of `Latent`, and an entry in `LATENTS`."""

from __future__ import annotations

import abc
from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.indep_messenger import IndepMessenger
from torch import Tensor, nn

from .config import ModelConfig
from .distributions import diagonal_normal, log_normal, standard_normal

LATENT_SITE = "latent"
"""Pyro's name of z; the levels above it are `latent_2`, `latent_3`, ..."""

COMPONENT_SITE = "component"
"""Pyro's name of a mixture's component."""

COMPONENT_PROBS_SITE = "component_probs"
"""Pyro's name of q(c|x), a deterministic site of a mixture's guide in evaluation mode."""


def site_names(num_levels: int) -> tuple[str, ...]:
    """Return Pyro's names of the levels, that of z first."""
    return tuple(LATENT_SITE if level == 0 else f"{LATENT_SITE}_{level + 1}" for level in range(num_levels))


class Latent(nn.Module, abc.ABC):
    """p(z), and q(z|x) given what the encoder made of x.

    The decoder takes z, shape `(batch, z_dim)`. The encoder returns `z_loc` and `z_scale` of q(z|x). Levels above z and
    a mixture's component belong to the latent. Its sample statements are all there is: densities, draws and graphs are
    derived from them.

    Args:
        config: The model's choices and sizes.
    """

    enumerated: ClassVar[bool] = False
    """Whether the model has a discrete site, which Pyro enumerates and sums out."""

    plate: ClassVar[type[IndepMessenger]] = IndepMessenger
    """The plate in training. `pyro.plate` would also subsample, and expand distributions to the batch: not needed."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    @abc.abstractmethod
    def sample_prior(self, like: Tensor) -> Tensor:
        """Sample p(z), as a part of the model and inside of its plate.

        Args:
            like: Shape `(batch, ...)`; its batch size, dtype and device are taken.

        Returns:
            z, shape `(batch, z_dim)`; with further axes on the left where Pyro enumerates or draws several particles.
        """

    @abc.abstractmethod
    def sample_posterior(self, z_loc: Tensor, z_scale: Tensor) -> None:
        """Sample q(z|x), as a part of the guide and inside of its plate; shape `(batch, z_dim)` each."""

    @property
    def component_probs(self) -> Tensor:
        """p(c) of a mixture's components, shape `(components,)`; empty for the other latents."""
        return torch.empty(0)


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


_SPREAD = 0.5  # standard deviation of the components' initial means


class Mixture(Latent):
    """p(z) = Σ_c p(c) N(z; loc_c, scale_c²), its weights, means and scales learned; q(z|x) = N(z_loc, z_scale²).

    The component is a site of the model alone. Pyro enumerates it and sums it out exactly, so the bound is that of
    p(x, z).
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
        """Sample z of N(z_loc, z_scale²); in evaluation mode also say what q(c|x) is, shape `(batch, components)`.

        It is the best one beside q(z|x): q(c|x) ∝ p(c) exp E_q(z|x)[log N(z; loc_c, scale_c²)], in closed form.
        """
        pyro.sample(LATENT_SITE, diagonal_normal(z_loc, z_scale))
        if not self.training:
            scale = self.log_scale.exp()
            expected = log_normal(z_loc[..., None, :], self.loc, scale)
            expected = expected - 0.5 * (z_scale[..., None, :] / scale).square().sum(-1)
            probs = torch.softmax(torch.log_softmax(self.logits, dim=0) + expected, dim=-1)
            with poutine.infer_config(config_fn=lambda _site: {"is_auxiliary": True}):  # the model has no such site
                pyro.deterministic(COMPONENT_PROBS_SITE, probs, event_dim=1)

    @property
    def component_probs(self) -> Tensor:
        """p(c), shape `(components,)`."""
        return torch.softmax(self.logits, dim=0)


LATENTS: dict[str, type[Latent]] = {"normal": Normal, "hierarchical": Hierarchical, "mixture": Mixture}
