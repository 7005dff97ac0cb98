"""The networks: an abstract encoder and decoder, the reference's, and the architectures beside it.

`Encoder` and `Decoder` are those of Pyro's VAE example; their layers carry its names, so that weights trained with it
load as they are.
"""

from __future__ import annotations

import abc
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .config import ModelConfig
from .labels import check_labels
from .likelihoods import Bernoulli, Likelihood
from .standardisation import Standardisation

_CHANNELS = (32, 64, 64)  # of the convolutions, each of which halves height and width


class AbstractEncoder(nn.Module, abc.ABC):
    """The parameters of q(z|x): features, and two heads.

    A subclass makes layers in `make_features` and applies them in `features`; there it has the sizes `data_dim`,
    `data_shape`, `hidden_dim` and `num_classes` as attributes. See `edgevae.train.architectures` for one.

    Args:
        z_dim: Number of latent dimensions.
        hidden_dim: Width of the hidden layers.
        data_shape: Shape of one observation.
        data_loc: Mean of the data, one number or `data_dim`; observations are standardised with it.
        data_scale: Standard deviation of the data, likewise, positive.
        num_classes: Number of labels that the network sees beside the observation, 0 for none.
    """

    def __init__(
        self,
        z_dim: int,
        hidden_dim: int,
        data_shape: tuple[int, ...],
        *,
        data_loc: float | tuple[float, ...] = 0.0,
        data_scale: float | tuple[float, ...] = 1.0,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.hidden_dim = hidden_dim
        self.data_shape = data_shape
        self.data_dim = math.prod(data_shape)
        self.standardisation = Standardisation(data_loc, data_scale)
        self.make_features()
        self.fc21 = nn.Linear(hidden_dim, z_dim)
        self.fc22 = nn.Linear(hidden_dim, z_dim)

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return `z_loc` and `z_scale`, shape `(batch, z_dim)` each, for `x` of shape `(batch, ...)`.

        `z_scale` is a standard deviation, positive. `y` holds the labels of a conditional model, integers, `(batch,)`.
        """
        hidden = self.features_at(x, y)
        return self.fc21(hidden), torch.exp(self.fc22(hidden))

    def features_at(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return features, shape `(batch, hidden_dim)`, for arguments as those of `forward`."""
        x = self.standardisation(x.flatten(1))
        return self.features(x, _one_hot(y, self.num_classes, x))

    @abc.abstractmethod
    def make_features(self) -> None:
        """Make the layers that `features` needs; the sizes are there, the heads are made afterwards."""

    @abc.abstractmethod
    def features(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Return features, shape `(batch, hidden_dim)`.

        Args:
            x: Standardised, shape `(batch, data_dim)`; `x.unflatten(1, self.data_shape)` is the image.
            labels: One-hot, shape `(batch, num_classes)`; `None` where there are no classes.
        """


class AbstractDecoder(nn.Module, abc.ABC):
    """The parameters of p(x|z).

    A subclass makes layers in `make_outputs` and applies them in `outputs`; there it has the sizes `code_dim`,
    `data_dim`, `data_shape` and `hidden_dim` as attributes. See `edgevae.train.architectures` for one.

    Args:
        z_dim: Number of latent dimensions.
        hidden_dim: Width of the hidden layers.
        data_shape: Shape of one observation.
        likelihood: Makes parameters of the last layer's numbers; by default the reference's Bernoulli.
        num_classes: Number of labels that the network sees beside z, 0 for none.
    """

    def __init__(
        self,
        z_dim: int,
        hidden_dim: int,
        data_shape: tuple[int, ...],
        likelihood: Likelihood | None = None,
        *,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.code_dim = z_dim + num_classes
        self.hidden_dim = hidden_dim
        self.data_shape = data_shape
        self.data_dim = math.prod(data_shape)
        likelihood = likelihood or Bernoulli(ModelConfig(data_shape, z_dim, hidden_dim))
        self.make_outputs(likelihood.num_outputs)
        self.likelihood = likelihood

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Return `loc_img`, the mean of p(x|z), shape `(batch, data_dim)`, for `z` of shape `(batch, z_dim)`.

        `y` holds the labels of a conditional model, integers, `(batch,)`.
        """
        return self.parameters_at(z, y)[0]

    def parameters_at(self, z: Tensor, y: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return all parameters of p(x|z), named by `likelihood.parameter_names`; `loc_img` is the first."""
        return self.likelihood.parameters_of(self.outputs_at(z, y))

    def outputs_at(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the last layer's numbers, shape `(batch, num_outputs * data_dim)`; parameters are made of them."""
        return self.outputs(_joined(z, _one_hot(y, self.num_classes, z)))

    @abc.abstractmethod
    def make_outputs(self, num_outputs: int) -> None:
        """Make the layers that `outputs` needs; the last one gives `num_outputs * data_dim` numbers a row."""

    @abc.abstractmethod
    def outputs(self, code: Tensor) -> Tensor:
        """Return the last layer's numbers, shape `(batch, num_outputs * data_dim)`.

        `code` is z and behind it the label, one-hot, shape `(batch, code_dim)`.
        """


class Encoder(AbstractEncoder):
    """The reference: one hidden layer with softplus."""

    def make_features(self) -> None:
        """Make one layer."""
        self.fc1 = nn.Linear(self.data_dim + self.num_classes, self.hidden_dim)
        self.softplus = nn.Softplus()

    def features(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Return the hidden layer."""
        hidden: Tensor = self.softplus(self.fc1(_joined(x, labels)))
        return hidden


class Decoder(AbstractDecoder):
    """The reference: one hidden layer with softplus."""

    def make_outputs(self, num_outputs: int) -> None:
        """Make two layers."""
        self.fc1 = nn.Linear(self.code_dim, self.hidden_dim)
        self.fc21 = nn.Linear(self.hidden_dim, num_outputs * self.data_dim)
        self.softplus = nn.Softplus()

    def outputs(self, code: Tensor) -> Tensor:
        """Return the output layer."""
        numbers: Tensor = self.fc21(self.softplus(self.fc1(code)))
        return numbers


class ConvEncoder(AbstractEncoder):
    """Three convolutions with stride 2, then one hidden layer; any height and width."""

    def make_features(self) -> None:
        """Make three convolutions and a layer."""
        channels, *image = self.data_shape
        widths = itertools.pairwise((channels, *_CHANNELS))
        self.convs = nn.ModuleList(nn.Conv2d(*width, kernel_size=3, stride=2, padding=1) for width in widths)
        self.fc1 = nn.Linear(_CHANNELS[-1] * math.prod(_halved(image)[-1]) + self.num_classes, self.hidden_dim)

    def features(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Return the hidden layer."""
        maps = x.unflatten(1, self.data_shape)
        for conv in self.convs:
            maps = torch.relu(conv(maps))
        return torch.relu(self.fc1(_joined(maps.flatten(1), labels)))


class ConvDecoder(AbstractDecoder):
    """Two hidden layers, then three transposed convolutions with stride 2; any height and width."""

    def make_outputs(self, num_outputs: int) -> None:
        """Make two layers and three transposed convolutions."""
        channels, *image = self.data_shape
        *larger, smallest = _halved(image)
        self.smallest = (_CHANNELS[-1], *smallest)
        self.fc1 = nn.Linear(self.code_dim, self.hidden_dim)
        self.fc2 = nn.Linear(self.hidden_dim, math.prod(self.smallest))
        widths = itertools.pairwise((*reversed(_CHANNELS), num_outputs * channels))
        self.deconvs = nn.ModuleList(
            _doubling(*width, sizes) for width, sizes in zip(widths, reversed(larger), strict=True)
        )

    def outputs(self, code: Tensor) -> Tensor:
        """Return the last convolution's maps."""
        maps = self.fc2(torch.relu(self.fc1(code))).unflatten(1, self.smallest)
        for deconv in self.deconvs:
            maps = deconv(torch.relu(maps))
        return maps.flatten(1)


ARCHITECTURES: dict[str, tuple[type[AbstractEncoder], type[AbstractDecoder]]] = {
    "mlp": (Encoder, Decoder),
    "conv": (ConvEncoder, ConvDecoder),
}


def _halved(image: Sequence[int]) -> list[tuple[int, ...]]:
    """Height and width of the image, and of what each convolution with stride 2 leaves of it."""
    sizes = [tuple(image)]
    for _ in _CHANNELS:
        sizes.append(tuple((size + 1) // 2 for size in sizes[-1]))
    return sizes


def _doubling(inputs: int, outputs: int, sizes: Sequence[int]) -> nn.ConvTranspose2d:
    """A transposed convolution to exactly `sizes`: the reverse of one with stride 2, for even sizes and for odd."""
    odd_or_even = (1 - sizes[0] % 2, 1 - sizes[1] % 2)
    return nn.ConvTranspose2d(inputs, outputs, kernel_size=3, stride=2, padding=1, output_padding=odd_or_even)


def _one_hot(y: Tensor | None, num_classes: int, like: Tensor) -> Tensor | None:
    """Labels as one-hot rows, shape `(batch, num_classes)`, where the network sees labels."""
    check_labels(y, num_classes)
    if y is None:
        return None
    return (y[:, None] == torch.arange(num_classes, device=y.device)).to(like.dtype)


def _joined(values: Tensor, labels: Tensor | None) -> Tensor:
    """Labels behind values."""
    return values if labels is None else torch.cat([values, labels], dim=1)
