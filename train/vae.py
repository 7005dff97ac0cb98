"""The variational autoencoder: model p(x, z) and guide q(z|x), after Pyro's VAE example.

Kingma & Welling, "Auto-Encoding Variational Bayes", 2013. With labels, "Semi-Supervised Learning with Deep Generative
Models", Kingma et al., 2014, of which this is the part where all labels are known: p(x|z, y) and q(z|x, y).
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.indep_messenger import IndepMessenger
from torch import Tensor, nn

from .config import ModelConfig
from .errors import ConfigError, LabelError
from .latents import LATENTS
from .likelihoods import LIKELIHOODS
from .networks import check_labels, check_networks, make_networks


class VAE(nn.Module):
    """Pyro's VAE: an `encoder`, a `latent`, a `decoder`, and the `model` and `guide` that use them.

    In training mode `model` scores `x` with the likelihood's `distribution_to_fit`, in evaluation mode with its
    `distribution`; `distribution_to_fit` says how they differ.

    Args:
        config: The choices and sizes. Networks of your own are imported.

    Raises:
        ConfigError: There is no such architecture, likelihood or latent; or networks of your own do not fit the model.
    """

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


def check_label_values(labels: Tensor | None, num_images: int, num_classes: int) -> None:
    """Check labels and their values. A network does not check values: a label out of range would act as no label.

    Args:
        labels: Labels of a data set, or `None`.
        num_images: Number of images.
        num_classes: Number of the model's classes, 0 for none.

    Raises:
        LabelError: They are missing or not wanted, or their number, dtype or range is wrong.
    """
    check_labels(labels, num_classes)
    if labels is None:
        return
    if labels.dtype != torch.int64 or labels.shape != (num_images,):
        raise LabelError(f"labels must be int64 of shape ({num_images},), got {labels.dtype} of {tuple(labels.shape)}")
    if num_images and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise LabelError(f"labels must be from 0 to {num_classes - 1}, got {int(labels.min())} to {int(labels.max())}")
