"""What every latent is."""

from __future__ import annotations

import abc
from typing import ClassVar

import torch
from pyro.poutine.indep_messenger import IndepMessenger
from torch import Tensor, nn

from ..config import ModelConfig

LATENT_SITE = "latent"
"""Pyro's name of z; the levels above it are `latent_2`, `latent_3`, ..."""

COMPONENT_SITE = "component"
"""Pyro's name of a mixture's component."""


def site_names(num_levels: int) -> tuple[str, ...]:
    """Return Pyro's names of the levels, that of z first."""
    return tuple(LATENT_SITE if level == 0 else f"{LATENT_SITE}_{level + 1}" for level in range(num_levels))


class Latent(nn.Module, abc.ABC):
    """p(z), and q(z|x) given what the encoder made of x.

    z, shape `(batch, z_dim)`, is what the decoder takes. The encoder gives `z_loc` and `z_scale` of q(z|x). What else a
    latent consists of, levels above z or a component, is in here. Each latent is said twice: as statements of Pyro, to
    fit it with, and as functions of explicit noise, which become graphs and are held against the statements.

    Args:
        config: The model's choices and sizes.
    """

    enumerated: ClassVar[bool] = False
    """Whether the model has a discrete site that is to be summed out."""

    plate: ClassVar[type[IndepMessenger]] = IndepMessenger
    """What tells Pyro in a fit that observations are independent.

    `pyro.plate` does more, and takes a twentieth of a step for it: it draws the indices of a subsample, and expands
    distributions to the batch. Here nothing is subsampled, and distributions have the batch already.
    """

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

    def posterior(self, z_loc: Tensor, z_scale: Tensor, *eps: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG002 - for others
        """Return what there is to know of q(z|x) beside `z_loc` and `z_scale`.

        Args:
            z_loc: Means, shape `(batch, z_dim)`.
            z_scale: Standard deviations, shape `(batch, z_dim)`.
            eps: Noise of each level but the highest, the lowest first.
        """
        return ()

    @property
    def component_probs(self) -> Tensor:
        """p(c) of a mixture's components, shape `(components,)`; empty for the other latents."""
        return torch.empty(0)

    @abc.abstractmethod
    def log_densities(self, z: Tensor, z_loc: Tensor, z_scale: Tensor, *upper_eps: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(z) and log q(z|x) in nats, shape `(batch,)` each.

        Args:
            z: Shape `(batch, z_dim)`.
            z_loc: Means of q(z|x), shape `(batch, z_dim)`.
            z_scale: Standard deviations of q(z|x), shape `(batch, z_dim)`.
            upper_eps: Noise of the levels above z, the lowest first, from which they are drawn here.
        """

    @abc.abstractmethod
    def prior(self, *noise: Tensor) -> Tensor:
        """Return z of the prior, shape `(batch, z_dim)`, for `eps` of each level, the lowest first.

        A mixture takes the component before them, integers of shape `(batch,)`.
        """
