"""A VAE of `edgevae.train` as the export sees it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from edgevae.train import COMPONENT_SITE, VAE, Images, elbo_of_each
from edgevae.train.export_check import model_spec, program_of
from edgevae.train.latents import site_names

from .exportable import id_of
from .program_vae import ProgramVAE


class TrainedVAE(ProgramVAE):
    """A VAE of `edgevae.train`: a Pyro program whose sites and arguments have known names.

    Args:
        vae: The model, on the CPU. It is used as it is, not copied.

    Raises:
        TraceError: It cannot be traced for any batch size.
    """

    def __init__(self, vae: VAE) -> None:
        self.vae, program = vae, program_of(vae)
        observed = next(site for site in program.sites if site.role == "observed")
        component = COMPONENT_SITE if vae.latent.enumerated else None
        self._set_up(program, site_names(len(vae.config.z_dims)), observed, component)
        self.spec = model_spec(vae)

    def weights(self) -> Mapping[str, Tensor]:
        """Return the weights by name."""
        return self.vae.state_dict()

    def elbo_of_each(self, x: Images, y: Tensor | None = None, num_particles: int = 1) -> Tensor:
        """Return the ELBO of each row in nats, shape `(batch,)`, from the noise of the training's evaluation."""
        return elbo_of_each(self.vae, x, num_particles, y)


def latent_space_id(vae: VAE) -> str:
    """Return the SHA-256 of the weights, which identifies the latent space: latents of other models do not fit."""
    return id_of(vae.state_dict())


def exportable(model: VAE | ProgramVAE) -> ProgramVAE:
    """Return a model as the export sees it."""
    return TrainedVAE(model) if isinstance(model, VAE) else model
