"""The networks: an abstract encoder and decoder, the reference's, and the architectures beside it.

`Encoder` and `Decoder` are those of Pyro's VAE example; their layers carry its names, so that weights trained with it
load as they are.
"""

from __future__ import annotations

import abc
import math

import torch
from torch import Tensor, nn

from train._config import ModelConfig
from train._likelihoods import Bernoulli, Likelihood

_CHANNELS = (32, 64)  # of the two convolutions, each of which halves height and width


class AbstractEncoder(nn.Module, abc.ABC):
    """The parameters of q(z|x): features, and two heads.

    Args:
        z_dim: Number of latent dimensions.
        hidden_dim: Width of the hidden layers.
        data_shape: Shape of one observation.
        data_loc: Mean of the data; observations are standardised with it.
        data_scale: Standard deviation of the data, positive.
    """

    def __init__(
        self,
        z_dim: int,
        hidden_dim: int,
        data_shape: tuple[int, ...],
        data_loc: float = 0.0,
        data_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        self.data_shape = data_shape
        self.data_loc = data_loc
        self.data_scale = data_scale
        self.make_features()
        self.fc21 = nn.Linear(hidden_dim, z_dim)
        self.fc22 = nn.Linear(hidden_dim, z_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return `z_loc` and `z_scale`, shape `(batch, z_dim)` each, for `x` of shape `(batch, ...)`.

        `z_scale` is a standard deviation, positive.
        """
        x = x.flatten(1)
        if (self.data_loc, self.data_scale) != (0.0, 1.0):
            x = (x - self.data_loc) / self.data_scale
        hidden = self.features(x)
        return self.fc21(hidden), torch.exp(self.fc22(hidden))

    @abc.abstractmethod
    def make_features(self) -> None:
        """Make the layers that `features` needs."""

    @abc.abstractmethod
    def features(self, x: Tensor) -> Tensor:
        """Return features, shape `(batch, hidden_dim)`, of `x`, shape `(batch, data_dim)`."""


class AbstractDecoder(nn.Module, abc.ABC):
    """The parameters of p(x|z).

    Args:
        z_dim: Number of latent dimensions.
        hidden_dim: Width of the hidden layers.
        data_shape: Shape of one observation.
        likelihood: Makes parameters of the last layer's numbers; by default the reference's Bernoulli.
    """

    def __init__(
        self, z_dim: int, hidden_dim: int, data_shape: tuple[int, ...], likelihood: Likelihood | None = None
    ) -> None:
        super().__init__()
        self.z_dim = z_dim
        self.hidden_dim = hidden_dim
        self.data_shape = data_shape
        likelihood = likelihood or Bernoulli(ModelConfig(data_shape, z_dim, hidden_dim))
        self.make_outputs(likelihood.num_outputs)
        self.likelihood = likelihood

    def forward(self, z: Tensor) -> Tensor:
        """Return `loc_img`, the mean of p(x|z), shape `(batch, data_dim)`, for `z` of shape `(batch, z_dim)`."""
        return self.parameters_at(z)[0]

    def parameters_at(self, z: Tensor) -> tuple[Tensor, ...]:
        """Return all parameters of p(x|z), named by `likelihood.parameter_names`; `loc_img` is the first."""
        return self.likelihood.parameters_of(self.outputs(z))

    @abc.abstractmethod
    def make_outputs(self, num_outputs: int) -> None:
        """Make the layers that `outputs` needs, for `num_outputs` numbers a value."""

    @abc.abstractmethod
    def outputs(self, z: Tensor) -> Tensor:
        """Return the last layer's numbers, shape `(batch, num_outputs * data_dim)`, for `z`, shape `(batch, z_dim)`."""


class Encoder(AbstractEncoder):
    """The reference: one hidden layer with softplus."""

    def make_features(self) -> None:
        """Make one layer."""
        self.fc1 = nn.Linear(math.prod(self.data_shape), self.hidden_dim)
        self.softplus = nn.Softplus()

    def features(self, x: Tensor) -> Tensor:
        """Return the hidden layer."""
        hidden: Tensor = self.softplus(self.fc1(x))
        return hidden


class Decoder(AbstractDecoder):
    """The reference: one hidden layer with softplus."""

    def make_outputs(self, num_outputs: int) -> None:
        """Make two layers."""
        self.fc1 = nn.Linear(self.z_dim, self.hidden_dim)
        self.fc21 = nn.Linear(self.hidden_dim, num_outputs * math.prod(self.data_shape))
        self.softplus = nn.Softplus()

    def outputs(self, z: Tensor) -> Tensor:
        """Return the output layer."""
        numbers: Tensor = self.fc21(self.softplus(self.fc1(z)))
        return numbers


class ConvEncoder(AbstractEncoder):
    """Two convolutions with stride 2, then one hidden layer; any height and width."""

    def make_features(self) -> None:
        """Make two convolutions and a layer."""
        channels, height, width = self.data_shape
        self.conv1 = nn.Conv2d(channels, _CHANNELS[0], kernel_size=3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(_CHANNELS[0], _CHANNELS[1], kernel_size=3, stride=2, padding=1)
        size = _CHANNELS[1] * half(half(height)) * half(half(width))
        self.fc1 = nn.Linear(size, self.hidden_dim)

    def features(self, x: Tensor) -> Tensor:
        """Return the hidden layer."""
        images = x.unflatten(1, self.data_shape)
        maps = torch.relu(self.conv2(torch.relu(self.conv1(images))))
        return torch.relu(self.fc1(maps.flatten(1)))


class ConvDecoder(AbstractDecoder):
    """Two hidden layers, then two transposed convolutions with stride 2; any height and width."""

    def make_outputs(self, num_outputs: int) -> None:
        """Make two layers and two transposed convolutions."""
        channels, *image = self.data_shape
        middle = [half(size) for size in image]
        self.smallest = (_CHANNELS[1], *(half(size) for size in middle))
        smallest_dim = _CHANNELS[1] * self.smallest[1] * self.smallest[2]
        self.fc1 = nn.Linear(self.z_dim, self.hidden_dim)
        self.fc2 = nn.Linear(self.hidden_dim, smallest_dim)
        self.deconv2 = _doubling(_CHANNELS[1], _CHANNELS[0], middle)
        self.deconv1 = _doubling(_CHANNELS[0], num_outputs * channels, image)

    def outputs(self, z: Tensor) -> Tensor:
        """Return the last convolution's maps."""
        maps = torch.relu(self.fc2(torch.relu(self.fc1(z)))).unflatten(1, self.smallest)
        return self.deconv1(torch.relu(self.deconv2(maps))).flatten(1)


ARCHITECTURES: dict[str, tuple[type[AbstractEncoder], type[AbstractDecoder]]] = {
    "mlp": (Encoder, Decoder),
    "conv": (ConvEncoder, ConvDecoder),
}


def half(size: int) -> int:
    """Return the size that a convolution with stride 2 leaves."""
    return (size + 1) // 2


def _doubling(inputs: int, outputs: int, sizes: list[int]) -> nn.ConvTranspose2d:
    """A transposed convolution to exactly `sizes`: the reverse of one with stride 2, for even sizes and for odd."""
    odd_or_even = (1 - sizes[0] % 2, 1 - sizes[1] % 2)
    return nn.ConvTranspose2d(inputs, outputs, kernel_size=3, stride=2, padding=1, output_padding=odd_or_even)
