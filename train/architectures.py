"""The networks that an architecture's name stands for: `mlp`, `conv`, or ones of one's own, `module:Encoder,Decoder`.

Networks of one's own are two classes in a module that can be imported:

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

What a constructor of theirs takes beside the arguments of the bases has defaults. A run keeps the name, not the code:
whoever loads a run, goes on with it or exports it imports the module, and so runs its code. A bundle needs neither.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .config import ModelConfig
from .errors import ConfigError
from .networks import ARCHITECTURES, AbstractDecoder, AbstractEncoder

_ROWS = 2
_FORM = "module:Encoder,Decoder"


def architecture_of(encoder: type[AbstractEncoder], decoder: type[AbstractDecoder]) -> str:
    """Return the name by which `ModelConfig` knows two classes, like `networks:TanhEncoder,TanhDecoder`.

    Raises:
        ConfigError: They cannot be imported by name, because they were made in the program itself or in a function; or
            they are no networks.
    """
    for name, networks in ARCHITECTURES.items():
        if networks == (encoder, decoder):
            return name
    for network in (encoder, decoder):
        if network.__module__ == "__main__" or "." in network.__qualname__:
            raise ConfigError(
                f"encoder and decoder must be importable by name, because whoever loads the run imports them; got "
                f"{network.__qualname__} of {network.__module__}. Put both on top of a module of their own, like "
                "networks.py, and import them from it"
            )
    for module in (encoder.__module__, decoder.__module__):
        there = [getattr(sys.modules.get(module), network.__name__, None) for network in (encoder, decoder)]
        if there == [encoder, decoder]:
            architecture = f"{module}:{encoder.__name__},{decoder.__name__}"
            networks_of(architecture)
            return architecture
    raise ConfigError(
        f"encoder and decoder must stand in one module, got {encoder.__module__}.{encoder.__name__} and "
        f"{decoder.__module__}.{decoder.__name__}; import one of them in the other's module"
    )


def networks_of(architecture: str) -> tuple[type[AbstractEncoder], type[AbstractDecoder]]:
    """Return the classes of an architecture's name; those of one's own are imported.

    Raises:
        ConfigError: There is no such architecture, module or class, or the class is not what it must be.
    """
    if architecture in ARCHITECTURES:
        return ARCHITECTURES[architecture]
    module, separator, classes = architecture.partition(":")
    names = classes.split(",")
    if not separator or len(names) != 2 or not all(part.isidentifier() for part in (*module.split("."), *names)):
        raise ConfigError(
            f"architecture must be one of {', '.join(ARCHITECTURES)}, or two classes of your own as {_FORM}, got "
            f"{architecture!r}"
        )
    imported = _import(module, architecture)
    encoder, decoder = _class_of(imported, names[0], AbstractEncoder), _class_of(imported, names[1], AbstractDecoder)
    _check_constructor(encoder, 1, 1, (1,), data_loc=0.0, data_scale=1.0, num_classes=0)
    _check_constructor(decoder, 1, 1, (1,), None, num_classes=0)
    return encoder, decoder


def check_networks(encoder: AbstractEncoder, decoder: AbstractDecoder, config: ModelConfig) -> None:
    """See that networks of one's own compute what a model of these sizes needs, on two rows.

    Raises:
        ConfigError: They fail, or what they return has another shape or range.
    """
    if config.architecture in ARCHITECTURES:
        return
    x = torch.linspace(0, 1, _ROWS * config.data_dim).unflatten(0, (_ROWS, *config.data_shape))
    z = torch.linspace(-1, 1, _ROWS * config.z_dim).unflatten(0, (_ROWS, config.z_dim))
    y = torch.zeros(_ROWS, dtype=torch.int64) if config.num_classes else None
    num_outputs = decoder.likelihood.num_outputs
    with _evaluating(encoder, decoder):
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


def _import(name: str, architecture: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # a module that this one needs
        raise ConfigError(
            f"architecture {architecture} needs the module {name}, and Python finds no {error.name}; the folder that "
            f"holds it must be on its path. Set PYTHONPATH=FOLDER, or run python -m train or python -m export in that "
            "folder: installed commands like vae-export do not look into the working folder"
        ) from error


def _class_of(module: ModuleType, name: str, base: type) -> type[Any]:
    """Return a class of `module` that can be made."""
    known = sorted(key for key, value in vars(module).items() if _is_network(value, base))
    found = getattr(module, name, None)
    if found is None:
        has = f"it has {', '.join(known)}" if known else f"it has no subclass of {base.__name__}"
        raise ConfigError(f"there is no class {name} in the module {module.__name__} ({module.__file__}); {has}")
    if not _is_network(found, base):
        raise ConfigError(
            f"{module.__name__}:{name} must be a subclass of {base.__name__}, got {_described(found)}; "
            f"the order is {_FORM}, and train exports both bases"
        )
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise ConfigError(f"{module.__name__}:{name} must define {' and '.join(missing)}; see {base.__name__}")
    return found


def _is_network(value: object, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base) and value is not base


def _check_constructor(network: type[Any], *arguments: object, **named: object) -> None:
    try:
        inspect.signature(network).bind(*arguments, **named)
    except TypeError as error:
        base = next(base for base in (AbstractEncoder, AbstractDecoder) if issubclass(network, base))
        raise ConfigError(
            f"{network.__module__}:{network.__name__} must take the arguments of {base.__name__}, and others with "
            f"defaults only: {error}"
        ) from error


@contextlib.contextmanager
def _evaluating(*networks: nn.Module) -> Iterator[None]:
    """Evaluate without gradients; afterwards each part is in the mode that it was in, and its statistics are too."""
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
        file = getattr(sys.modules.get(type(network).__module__), "__file__", None)
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        where = f" in line {lines[-1]} of {Path(str(file)).name}" if lines else ""
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
    return f"{type(network).__module__}:{type(network).__name__}"


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"shape {tuple(value.shape)}"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
