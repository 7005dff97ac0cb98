"""The variational autoencoder: model p(x, z) and guide q(z|x), after Pyro's VAE example.

Kingma & Welling, "Auto-Encoding Variational Bayes", 2013.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from train._config import ModelConfig
from train._errors import ConfigError
from train._likelihoods import LIKELIHOODS
from train._networks import ARCHITECTURES


class VAE(nn.Module):
    """Pyro's VAE: an `encoder`, a `decoder`, and the `model` and `guide` that use them.

    Args:
        config: The choices and sizes. Nothing else is assumed about the data.

    Raises:
        ConfigError: There is no such architecture or likelihood.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        for name, choices in (("architecture", ARCHITECTURES), ("likelihood", LIKELIHOODS)):
            if getattr(config, name) not in choices:
                raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {getattr(config, name)!r}")
        self.config = config
        encoder, decoder = ARCHITECTURES[config.architecture]
        self.encoder = encoder(config.z_dim, config.hidden_dim, config.data_shape, config.data_loc, config.data_scale)
        likelihood = LIKELIHOODS[config.likelihood](config)
        self.decoder = decoder(config.z_dim, config.hidden_dim, config.data_shape, likelihood)

    def model(self, x: Tensor) -> Tensor:
        """Sample p(z) p(x|z) with `x` observed; return `loc_img`, the mean of p(x|z), shape `(batch, data_dim)`."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            # p(z) = N(0, I)
            z_loc = x.new_zeros((x.shape[0], self.config.z_dim))
            z_scale = x.new_ones((x.shape[0], self.config.z_dim))
            z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            parameters = self.decoder.parameters_at(z)
            likelihood = self.decoder.likelihood
            observed = likelihood.observed(x.flatten(1))
            pyro.sample("obs", likelihood.distribution(parameters).to_event(1), obs=observed)
        loc_img: Tensor = parameters[0]
        return loc_img

    def guide(self, x: Tensor) -> None:
        """Sample q(z|x) for `x` of shape `(batch, ...)`."""
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            # q(z|x) = N(z_loc, z_scale²)
            z_loc, z_scale = self.encoder(x)
            pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))

    def reconstruct_img(self, x: Tensor) -> Tensor:
        """Encode `x`, sample z from q(z|x), decode: `loc_img`, shape `(batch, data_dim)`."""
        z_loc, z_scale = self.encoder(x)
        z = dist.Normal(z_loc, z_scale).sample()
        loc_img: Tensor = self.decoder(z)
        return loc_img
