"""The two networks of the reference model."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Encoder(nn.Module):
    """The parameters of q(z|x): one hidden layer, two heads.

    The layers carry the names of Pyro's VAE example, so that weights trained with it load as they are.

    Args:
        z_dim: Number of latent dimensions.
        hidden_dim: Width of the hidden layer.
        data_dim: Number of values in one observation.
    """

    def __init__(self, z_dim: int, hidden_dim: int, data_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(data_dim, hidden_dim)
        self.fc21 = nn.Linear(hidden_dim, z_dim)
        self.fc22 = nn.Linear(hidden_dim, z_dim)
        self.softplus = nn.Softplus()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return `z_loc` and `z_scale`, shape `(batch, z_dim)` each, for `x` of shape `(batch, ...)`.

        `z_scale` is a standard deviation, positive.
        """
        hidden = self.softplus(self.fc1(x.flatten(1)))
        return self.fc21(hidden), torch.exp(self.fc22(hidden))


class Decoder(nn.Module):
    """The parameters of p(x|z): one hidden layer, a probability a pixel.

    Args:
        z_dim: Number of latent dimensions.
        hidden_dim: Width of the hidden layer.
        data_dim: Number of values in one observation.
    """

    def __init__(self, z_dim: int, hidden_dim: int, data_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(z_dim, hidden_dim)
        self.fc21 = nn.Linear(hidden_dim, data_dim)
        self.softplus = nn.Softplus()

    def forward(self, z: Tensor) -> Tensor:
        """Return `loc_img`, shape `(batch, data_dim)` in [0, 1], for `z` of shape `(batch, z_dim)`."""
        hidden = self.softplus(self.fc1(z))
        return torch.sigmoid(self.fc21(hidden))
