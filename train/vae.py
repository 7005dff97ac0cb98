"""The variational autoencoder: model p(x, z) and guide q(z|x), after Pyro's VAE example.

Kingma & Welling, "Auto-Encoding Variational Bayes", 2013. With labels, "Semi-Supervised Learning with Deep Generative
Models", Kingma et al., 2014, of which this is the part where all labels are known: p(x|z, y) and q(z|x, y).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.indep_messenger import IndepMessenger
from torch import Tensor

from .config import ModelConfig, TrainingConfig
from .device import forked_rng
from .elbo import RowTerms, elbo_terms, evaluating, kl_of_dims, log_weights
from .errors import ConfigError
from .latents import LATENTS
from .likelihoods import LIKELIHOODS
from .networks import check_networks, make_networks
from .objective import ScaleLatent, is_latent, objective_of
from .programs import check_exportable
from .trainable import Trainable


class VAE(Trainable):
    """Pyro's VAE: an `encoder`, a `latent`, a `decoder`, and the `model` and `guide` that use them.

    In training mode `model` scores `x` with the likelihood's `distribution_to_fit`, in evaluation mode with its
    `distribution`; `distribution_to_fit` says how they differ.

    Args:
        config: The choices and sizes. Networks of your own are imported.

    Raises:
        ConfigError: There is no such architecture, likelihood or latent; or networks of your own do not fit the model.
    """

    config: ModelConfig

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        for name, choices in (("likelihood", LIKELIHOODS), ("latent", LATENTS)):
            if getattr(config, name) not in choices:
                raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {getattr(config, name)!r}")
        self.config = config
        self.encoder, self.decoder = make_networks(config, LIKELIHOODS[config.likelihood](config))
        self.latent = LATENTS[config.latent](config)
        check_networks(self.encoder, self.decoder, config)

    def model(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Sample p(z) p(x|z) with `x` observed; return `loc_img`, the mean of p(x|z), shape `(batch, data_dim)`.

        Args:
            x: Observations, shape `(batch, ...)`.
            y: Labels, integers of shape `(batch,)`, for a conditional model.
        """
        pyro.module("latent", self.latent)
        pyro.module("decoder", self.decoder)
        outputs = self.sample_joint(x, y, pyro.plate)
        loc_img: Tensor = self.decoder.likelihood.distribution(outputs).mean
        return loc_img

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        """Sample q(z|x), for the arguments of `model`."""
        pyro.module("encoder", self.encoder)
        pyro.module("latent", self.latent)
        self.sample_posterior(x, y, pyro.plate)

    def sample_joint(self, x: Tensor, y: Tensor | None = None, plate: type[IndepMessenger] | None = None) -> Tensor:
        """Do what `model` does, but register no parameters.

        Args:
            x: Observations, shape `(batch, ...)`.
            y: Labels, integers of shape `(batch,)`, for a conditional model.
            plate: Pyro's plate of independent observations; by default the latent's `plate`.

        Returns:
            The decoder's outputs, shape `(batch, num_outputs * data_dim)`, with further axes on the left where
            Pyro enumerates or draws several particles.
        """
        with (plate or self.latent.plate)("data", x.shape[0]):
            z = self.latent.sample_prior(x)
            outputs = self._outputs_at(z, y)
            likelihood = self.decoder.likelihood
            p_x = likelihood.distribution_to_fit(outputs) if self.training else likelihood.distribution(outputs)
            pyro.sample("obs", p_x.to_event(1), obs=x.flatten(1))
        return outputs

    def sample_posterior(self, x: Tensor, y: Tensor | None = None, plate: type[IndepMessenger] | None = None) -> None:
        """Do what `guide` does, but register no parameters; for the arguments of `sample_joint`.

        Networks may compute in a lower precision; densities are computed in that of `x`.
        """
        with (plate or self.latent.plate)("data", x.shape[0]):
            z_loc, z_scale = self.encoder(x, y)
            self.latent.sample_posterior(z_loc.to(x.dtype), z_scale.to(x.dtype))

    def reconstruct_img(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Encode `x`, sample z from q(z|x), decode: `loc_img`, shape `(batch, data_dim)`."""
        z_loc, z_scale = self.encoder(x, y)
        z = dist.Normal(z_loc, z_scale).sample()
        loc_img: Tensor = self.decoder(z, y)
        return loc_img

    def _outputs_at(self, z: Tensor, y: Tensor | None) -> Tensor:
        """Return the decoder's outputs.

        z may have further axes on the left, for Pyro's particles. The networks get a single batch axis.
        """
        batch_shape = z.shape[:-1]
        if y is not None:
            y = y.expand(batch_shape).flatten()
        outputs: Tensor = self.decoder.outputs_at(z.flatten(0, -2), y).to(z.dtype)
        return outputs.unflatten(0, batch_shape)

    # What a training needs

    @property
    def summary(self) -> str:
        """The choices and sizes."""
        return self.config.description

    @property
    def unit_interval(self) -> bool:
        """Whether the likelihood needs data in [0, 1]."""
        return self.decoder.likelihood.unit_interval

    @property
    def num_units(self) -> int:
        """Dimensions of z's first level."""
        return self.config.z_dim

    @property
    def has_means(self) -> bool:
        """Every likelihood has a mean."""
        return True

    @property
    def values_a_row(self) -> int:
        """The decoder's outputs."""
        return self.config.data_dim * self.decoder.likelihood.num_outputs

    def fitted(self) -> Sequence[Tensor]:
        """Return all parameters."""
        return list(self.parameters())

    def is_latent(self, site: str) -> bool:
        """Return whether a site is a level of z, or a mixture's component."""
        return is_latent(site)

    def loss_of(
        self, config: TrainingConfig, latent: ScaleLatent, batch_mean: Callable[[Tensor], Tensor]
    ) -> Callable[..., Tensor]:
        """Return the ELBO that `config` asks for, negative; see `Trainable`."""
        jit = config.jit  # the compiled ELBO finds its parameters in Pyro's store
        model, elbo = objective_of(self, config.num_particles, jit, config.free_bits, batch_mean, registered=jit)
        guide = self.guide if jit else self.sample_posterior
        differentiable_loss: Any = elbo.differentiable_loss  # Pyro's has no types
        return functools.partial(differentiable_loss, latent(model), latent(guide))

    def terms(self, x: Tensor, y: Tensor | None) -> RowTerms:
        """Return the terms of the ELBO for one draw of z; see `Trainable`."""
        terms = elbo_terms(self, x, self._noise(x, len(x)), y)
        return RowTerms(terms.elbo, terms.log_px_z, kl_of_dims(self.latent, terms), terms.z_loc[0].double())

    def weigher(self, x: Tensor, y: Tensor | None) -> Callable[[int], Tensor]:
        """Return what weighs draws; see `Trainable`. The encoder runs once."""
        q_z: tuple[Tensor, Tensor] = self.encoder(x, y)
        observed = x.flatten(1)
        return lambda count: log_weights(self, observed, y, q_z, self._noise(x, count, len(x)))

    def _noise(self, like: Tensor, *shape: int) -> list[Tensor]:
        return [torch.randn((*shape, size), device=like.device) for size in self.config.z_dims]

    def encode(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what the encoder says of z's first level; see `Trainable`."""
        z_loc, z_scale = self.encoder(x, y)
        return z_loc, z_scale

    def check_rows(self, x: Tensor, y: Tensor | None, loss: Callable[..., Tensor]) -> None:  # noqa: ARG002 - shapes say all
        """Check that log p(x|z) is one number for each row.

        Without `.to_event(1)` it would be one for each value, which Pyro's plate accepts if batch size and `data_dim`
        are equal.
        """
        eps = [x.new_zeros((len(x), size)) for size in self.config.z_dims]
        with evaluating(self), forked_rng(x.device):
            shape = elbo_terms(self, x, eps, y).log_px_z.shape
        if shape != (len(x),):
            raise ValueError(f"log p(x|z) must be one number a row, got shape {tuple(shape)}; declare .to_event(1)")

    def check_exportable(self) -> None:
        """Check that networks, a likelihood or a latent of a user's own can be exported; see `check_exportable`."""
        check_exportable(self)
