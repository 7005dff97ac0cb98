"""Encoders and decoders: Pyro's reference MLP, convolutions, and classes of your own.

`Encoder` and `Decoder` are those of Pyro's VAE example; their layers have its names, so weights trained with it load
unchanged. Networks of your own are two classes in a module, chosen by `--architecture my_nets:TanhEncoder,TanhDecoder`:

    class TanhEncoder(AbstractEncoder):
        def make_features(self) -> None:
            self.layer = nn.Linear(self.data_dim + self.num_classes, self.hidden_dim)

        def features(self, x: Tensor, labels: Tensor | None) -> Tensor:
            return torch.tanh(self.layer(x if labels is None else torch.cat([x, labels], dim=1)))

    class TanhDecoder(AbstractDecoder):
        def make_outputs(self, num_outputs: int) -> None:
            self.hidden = nn.Linear(self.code_dim, self.hidden_dim)
            self.last = nn.Linear(self.hidden_dim, num_outputs * self.data_dim)

        def outputs(self, code: Tensor) -> Tensor:
            return self.last(torch.tanh(self.hidden(code)))

Their constructors may take further arguments, which `--architecture-option depth=3` sets:

    class TanhEncoder(AbstractEncoder):
        def __init__(self, *sizes, depth: int = 1, **more):
            self.depth = depth
            super().__init__(*sizes, **more)

The module is searched for on Python's path and in the working directory; `--architecture path/my_nets.py:...` names its
file instead. A run stores the name, not the code: loading, resuming or exporting a run imports the module, and so runs
its code. A bundle needs neither.
"""

from __future__ import annotations

import abc
import contextlib
import inspect
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .config import ModelConfig
from .errors import ConfigError, LabelError
from .importing import import_file, import_module
from .likelihoods import Bernoulli, Likelihood, Standardisation
from .tracing import line_of_error

_CHANNELS = (32, 64, 64)  # of the convolutions, each of which halves height and width


class AbstractEncoder(nn.Module, abc.ABC):
    """The parameters of q(z|x): features, and two heads.

    A subclass makes layers in `make_features` and applies them in `features`. Both can use the sizes `data_dim`,
    `data_shape`, `hidden_dim` and `num_classes`. The module's docstring has an example.

    Args:
        z_dim: Number of latent dimensions.
        hidden_dim: Width of the hidden layers.
        data_shape: Shape of one observation.
        data_loc: Mean of the data, one number or `data_dim`, to standardise observations.
        data_scale: Standard deviation of the data, one number or `data_dim`, positive.
        num_classes: Number of classes, if the network sees labels, too; else 0.
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
        """Return features, shape `(batch, hidden_dim)`, for the arguments of `forward`."""
        x = self.standardisation(x.flatten(1))
        return self.features(x, _one_hot(y, self.num_classes, x))

    @abc.abstractmethod
    def make_features(self) -> None:
        """Make the layers that `features` needs. The sizes are set already; the heads are made afterwards."""

    @abc.abstractmethod
    def features(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """Return features, shape `(batch, hidden_dim)`.

        Args:
            x: Standardised, shape `(batch, data_dim)`; `x.unflatten(1, self.data_shape)` is the image.
            labels: One-hot, shape `(batch, num_classes)`; `None` without classes.
        """


class AbstractDecoder(nn.Module, abc.ABC):
    """The parameters of p(x|z).

    A subclass makes layers in `make_outputs` and applies them in `outputs`. Both can use the sizes `code_dim`,
    `data_dim`, `data_shape` and `hidden_dim`. The module's docstring has an example.

    Args:
        z_dim: Number of latent dimensions.
        hidden_dim: Width of the hidden layers.
        data_shape: Shape of one observation.
        likelihood: Turns the last layer's outputs into parameters; Bernoulli by default.
        num_classes: Number of classes, if the network sees labels, too; else 0.
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
        loc_img: Tensor = self.likelihood.distribution(self.outputs_at(z, y)).mean
        return loc_img

    def outputs_at(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the last layer's outputs, shape `(batch, num_outputs * data_dim)`."""
        return self.outputs(_joined(z, _one_hot(y, self.num_classes, z)))

    @abc.abstractmethod
    def make_outputs(self, num_outputs: int) -> None:
        """Make the layers that `outputs` needs; the last one has `num_outputs * data_dim` outputs."""

    @abc.abstractmethod
    def outputs(self, code: Tensor) -> Tensor:
        """Return the last layer's outputs, shape `(batch, num_outputs * data_dim)`.

        `code` is z followed by the one-hot label, shape `(batch, code_dim)`.
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
        outputs: Tensor = self.fc21(self.softplus(self.fc1(code)))
        return outputs


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
    """Return height and width of the image, and of the output of each convolution with stride 2."""
    sizes = [tuple(image)]
    for _ in _CHANNELS:
        sizes.append(tuple((size + 1) // 2 for size in sizes[-1]))
    return sizes


def _doubling(inputs: int, outputs: int, sizes: Sequence[int]) -> nn.ConvTranspose2d:
    """Return a transposed convolution with stride 2 whose output has exactly `sizes`, even or odd."""
    odd_or_even = (1 - sizes[0] % 2, 1 - sizes[1] % 2)
    return nn.ConvTranspose2d(inputs, outputs, kernel_size=3, stride=2, padding=1, output_padding=odd_or_even)


def check_labels(labels: Tensor | None, num_classes: int) -> None:
    """Check that a conditional model gets labels, and any other model none.

    Raises:
        LabelError: Labels are missing, or not wanted.
    """
    if (labels is None) == (num_classes > 0):
        made_for = f"labels y, shape (batch,), of {num_classes} classes" if num_classes else "no labels"
        raise LabelError(f"this model was made for {made_for}, got {'none' if labels is None else 'y'}")


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


def _one_hot(y: Tensor | None, num_classes: int, like: Tensor) -> Tensor | None:
    """Return one-hot labels, shape `(batch, num_classes)`; `None` if the network sees none."""
    check_labels(y, num_classes)
    if y is None:
        return None
    return (y[:, None] == torch.arange(num_classes, device=y.device)).to(like.dtype)


def _joined(values: Tensor, labels: Tensor | None) -> Tensor:
    """Append the labels to the values."""
    return values if labels is None else torch.cat([values, labels], dim=1)


_ROWS = 2  # in the batch on which networks are checked
_FORM = "module:Encoder,Decoder or path/nets.py:Encoder,Decoder"


def architecture_of(encoder: type[AbstractEncoder], decoder: type[AbstractDecoder]) -> str:
    """Return the architecture's name for two classes, like `my_nets:TanhEncoder,TanhDecoder`; for `ModelConfig`.

    Raises:
        ConfigError: They are not networks, or cannot be imported by name, because they are defined in `__main__` or in
            a function.
    """
    for name, networks in ARCHITECTURES.items():
        if networks == (encoder, decoder):
            return name
    for network in (encoder, decoder):
        if network.__module__ == "__main__" or "." in network.__qualname__:
            raise ConfigError(
                f"encoder and decoder must be importable by name, because loading the run imports them; got "
                f"{network.__qualname__} of {network.__module__}. Define both at the top level of a module of their "
                "own, like my_nets.py, and import them from it"
            )
    for module in (encoder.__module__, decoder.__module__):
        there = [getattr(sys.modules.get(module), network.__name__, None) for network in (encoder, decoder)]
        if there == [encoder, decoder]:
            source = module.partition("@")[2] or module  # the path of a file that `import_file` imported
            architecture = f"{source}:{encoder.__name__},{decoder.__name__}"
            networks_of(architecture)
            return architecture
    raise ConfigError(
        f"encoder and decoder must be in one module, got {encoder.__module__}.{encoder.__name__} and "
        f"{decoder.__module__}.{decoder.__name__}; import one of them in the other's module"
    )


def make_networks(config: ModelConfig, likelihood: Likelihood) -> tuple[AbstractEncoder, AbstractDecoder]:
    """Make encoder and decoder; classes of your own are imported.

    Raises:
        ConfigError: There are no such networks, or they do not take these arguments.
    """
    encoder, decoder = networks_of(config.architecture)
    of_encoder, of_decoder = check_options(config.architecture, config.architecture_options)
    sizes, loc, scale = (config.z_dim, config.hidden_dim, config.data_shape), config.data_loc, config.data_scale
    return (
        encoder(*sizes, data_loc=loc, data_scale=scale, num_classes=config.num_classes, **of_encoder),
        decoder(*sizes, likelihood, num_classes=config.num_classes, **of_decoder),
    )


def check_options(architecture: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return which options the encoder takes, and which the decoder.

    Raises:
        ConfigError: Neither takes an option, or a network needs one that is missing.
    """
    encoder, decoder = networks_of(architecture)
    known = [_options_of(encoder, AbstractEncoder), _options_of(decoder, AbstractDecoder)]
    if unknown := [name for name in options if name not in known[0] | known[1]]:
        raise ConfigError(
            f"architecture {architecture} takes no option {', '.join(unknown)}; its encoder takes "
            f"{', '.join(sorted(known[0])) or 'none'}, its decoder {', '.join(sorted(known[1])) or 'none'}. A "
            "network takes an option as an argument of its constructor: def __init__(self, *sizes, depth=1, **more)"
        )
    of_encoder, of_decoder = ({name: options[name] for name in options if name in names} for names in known)
    _check_constructor(encoder, 1, 1, (1,), data_loc=0.0, data_scale=1.0, num_classes=0, **of_encoder)
    _check_constructor(decoder, 1, 1, (1,), None, num_classes=0, **of_decoder)
    return of_encoder, of_decoder


def _options_of(network: type, base: type) -> set[str]:
    """Return the names of the arguments that a class and its bases below `base` add to the constructor."""
    own = network.__mro__[: network.__mro__.index(base)]
    given = [inspect.signature(vars(each)["__init__"]).parameters.values() for each in own if "__init__" in vars(each)]
    named = {
        each.name for each in itertools.chain(*given) if each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD)
    }
    return named - {*inspect.signature(vars(base)["__init__"]).parameters}


def networks_of(architecture: str) -> tuple[type[AbstractEncoder], type[AbstractDecoder]]:
    """Return the classes of an architecture; those of your own are imported.

    Raises:
        ConfigError: There is no such architecture, file, module or class, or the class is no encoder or decoder.
    """
    if architecture in ARCHITECTURES:
        return ARCHITECTURES[architecture]
    module, separator, classes = architecture.rpartition(":")
    names = classes.split(",")
    is_file = module.endswith(".py")
    parts = names if is_file else (*module.split("."), *names)
    if not separator or len(names) != 2 or not all(part.isidentifier() for part in parts):
        raise ConfigError(
            f"architecture must be one of {', '.join(ARCHITECTURES)}, or two classes of your own as {_FORM}, got "
            f"{architecture!r}"
        )
    if is_file:
        remedy = (
            "put it there, or, for a run whose file has moved, write its new path into the run's config.json, under "
        )
        imported = import_file(Path(module), "networks", f"{remedy}architecture")
    else:
        imported = import_module(module, f"architecture {architecture}")
    return _class_of(imported, names[0], AbstractEncoder), _class_of(imported, names[1], AbstractDecoder)


def check_networks(encoder: AbstractEncoder, decoder: AbstractDecoder, config: ModelConfig) -> None:
    """Check that networks of your own return the right shapes and ranges, on two rows.

    On PyTorch's meta device only shapes are checked, up to the first network that needs values.

    Raises:
        ConfigError: They fail, or their outputs have another shape or range.
    """
    if config.architecture in ARCHITECTURES:
        return
    x = torch.linspace(0, 1, _ROWS * config.data_dim).unflatten(0, (_ROWS, *config.data_shape))
    z = torch.linspace(-1, 1, _ROWS * config.z_dim).unflatten(0, (_ROWS, config.z_dim))
    y = torch.zeros(_ROWS, dtype=torch.int64) if config.num_classes else None
    num_outputs = decoder.likelihood.num_outputs
    with _evaluating(encoder, decoder), contextlib.suppress(_NeedsValuesError):
        features = _computed(encoder, encoder.features_at, x, y)
        _check_shape(encoder, "features", features, config.hidden_dim, "hidden_dim")
        heads = _computed(encoder, encoder, x, y)
        if not isinstance(heads, tuple) or len(heads) != 2:
            raise ConfigError(f"{_name(encoder)} must return z_loc and z_scale, got {_described(heads)}")
        for name, head in zip(("z_loc", "z_scale"), heads, strict=True):
            _check_shape(encoder, name, head, config.z_dim, "z_dim")
        z_scale = heads[1]
        if not z_scale.is_meta and not bool((z_scale > 0).all()):
            raise ConfigError(
                f"z_scale of {_name(encoder)} must be positive, it is a standard deviation; got values down to "
                f"{float(z_scale.min()):g}. Return torch.exp of the last layer"
            )
        outputs = _computed(decoder, decoder.outputs_at, z, y)
        width = f"num_outputs * data_dim, {num_outputs} * {config.data_dim}"
        _check_shape(decoder, "outputs", outputs, num_outputs * config.data_dim, width)


def _class_of(module: ModuleType, name: str, base: type) -> type[Any]:
    """Return a class of `module`, which must be a complete subclass of `base`."""
    known = sorted(key for key, value in vars(module).items() if _is_network(value, base))
    found = getattr(module, name, None)
    if found is None:
        has = f"it has {', '.join(known)}" if known else f"it has no subclass of {base.__name__}"
        raise ConfigError(
            f"there is no class {name} in the module {_module_name(module.__name__)} ({module.__file__}); {has}"
        )
    if not _is_network(found, base):
        raise ConfigError(
            f"{_module_name(module.__name__)}:{name} must be a subclass of {base.__name__}, got {_described(found)}; "
            f"the order is {_FORM}, and edgevae.train exports both bases"
        )
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise ConfigError(
            f"{_module_name(module.__name__)}:{name} must define {' and '.join(missing)}; see {base.__name__}"
        )
    return found


def _is_network(value: object, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base) and value is not base


def _check_constructor(network: type[Any], *arguments: object, **named: object) -> None:
    try:
        inspect.signature(network).bind(*arguments, **named)
    except TypeError as error:
        base = next(base for base in (AbstractEncoder, AbstractDecoder) if issubclass(network, base))
        raise ConfigError(
            f"{_class_name(network)} must take the arguments of {base.__name__}, and others with "
            f"defaults only, or with a value in --architecture-option: {error}"
        ) from error


class _NeedsValuesError(Exception):
    """A network on the meta device, where tensors have no values, asked for one."""


@contextlib.contextmanager
def _evaluating(*networks: nn.Module) -> Iterator[None]:
    """Evaluate without gradients; restore the mode of each module afterwards."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    for network in networks:
        network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _computed(network: nn.Module, function: Callable[..., Any], given: Tensor, y: Tensor | None) -> Any:
    try:
        return function(given, y)
    except Exception as error:  # whatever the network raises
        if given.is_meta and "meta" in str(error):
            raise _NeedsValuesError from error
        line = line_of_error(error)
        where = "" if line is None else f" in line {line.number} of {Path(line.file).name}"
        labels = "" if y is None else f" and labels {tuple(y.shape)}"
        raise ConfigError(
            f"{_name(network)} fails{where} for a batch of shape {tuple(given.shape)}{labels}: {error}"
        ) from error


def _check_shape(network: nn.Module, what: str, value: object, width: int, size: str) -> None:
    if not isinstance(value, Tensor) or value.shape != (_ROWS, width):
        raise ConfigError(
            f"{what} of {_name(network)} must have shape (batch, {width}), got {_described(value)} for a batch of "
            f"{_ROWS}; the last axis is {size}"
        )


def _name(network: nn.Module) -> str:
    return _class_name(type(network))


def _class_name(network: type) -> str:
    return f"{_module_name(network.__module__)}:{network.__name__}"


def _module_name(name: str) -> str:
    """The name of a module; of a file that `import_file` imported, without its folders."""
    return Path(name.partition("@")[2] or name).name


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"shape {tuple(value.shape)}"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
