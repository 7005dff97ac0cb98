"""The variational autoencoder: model p(x, z) and guide q(z|x), after Pyro's VAE example.

Kingma & Welling, "Auto-Encoding Variational Bayes", 2013.
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from train._config import ModelConfig
from train._networks import Decoder, Encoder


class VAE(nn.Module):
    """Pyro's VAE: an `encoder`, a `decoder`, and the `model` and `guide` that use them.

    Args:
        config: The sizes. Nothing else is assumed about the data.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.z_dim, config.hidden_dim, config.data_dim)
        self.decoder = Decoder(config.z_dim, config.hidden_dim, config.data_dim)

    def model(self, x: Tensor) -> Tensor:
        """Sample p(z) p(x|z), with `x` of shape `(batch, ...)` in [0, 1] observed; return `loc_img`.

        Grey-scale pixels are scored by the Bernoulli as they are, which is why it does not validate them.
        """
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            # p(z) = N(0, I)
            z_loc = x.new_zeros((x.shape[0], self.config.z_dim))
            z_scale = x.new_ones((x.shape[0], self.config.z_dim))
            z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            # p(x|z) = Bernoulli(loc_img)
            loc_img: Tensor = self.decoder(z)
            pyro.sample("obs", dist.Bernoulli(loc_img, validate_args=False).to_event(1), obs=x.flatten(1))
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
