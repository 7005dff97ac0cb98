"""Pyro programs by their place: what `--program` names."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from ..errors import ConfigError
from ..importing import import_file, import_module
from ..tracing import line_of_error

_FORM = "FILE.py:NAME or module:NAME"


@dataclasses.dataclass(frozen=True)
class LoadedProgram:
    """A Pyro program that was found by its name.

    Args:
        name: Of the class or function.
        model: The model.
        guide: The guide.
        owner: The module that holds the weights; `None` where model and guide are plain functions.
    """

    name: str
    model: Callable[..., Any]
    guide: Callable[..., Any]
    owner: nn.Module | None


def load_program(place: str) -> LoadedProgram:
    """Import a Pyro program.

    Args:
        place: `FILE.py:NAME` or `module:NAME`. NAME is an object with methods `model` and `guide`, a class or function
            that makes one when it is called without arguments, or a pair `(model, guide)`.

    Returns:
        The program. A file is run anew each time, and its class or function called, so that no weights are shared.

    Raises:
        ConfigError: There is no such file, module or name, or it is something else.
    """
    module, separator, name = place.rpartition(":")
    if not separator or not module or not name.isidentifier():
        raise ConfigError(f"a program must be given as {_FORM}, got {place!r}")
    imported = _imported(module, place)
    if (found := getattr(imported, name, None)) is None:
        known = [key for key, value in vars(imported).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(
            f"there is no {name} in {module}; it has {', '.join(sorted(known)) or 'no functions and classes'}"
        )
    made = found
    if callable(found) and (isinstance(found, type) or not _is_program(found)):
        try:
            inspect.signature(found).bind()
        except TypeError as error:
            raise ConfigError(
                f"{place} cannot be called without arguments: {error}. Write a function that makes the program, like "
                f"def make(): return {name}(...), and give its name"
            ) from error
        try:
            made = found()
        except Exception as error:  # a stranger's program raises anything
            where = line_of_error(error) or place
            raise ConfigError(f"{where} fails where the program is made: {type(error).__name__}: {error}") from error
    if not _is_program(made):
        raise ConfigError(
            f"{place} must be an object with model and guide, a class or function that makes one without arguments, or "
            f"a pair (model, guide), got {type(made).__name__}"
        )
    model, guide = made if isinstance(made, (tuple, list)) else (made.model, made.guide)
    return LoadedProgram(name, model, guide, _owner_of(made))


def _imported(module: str, place: str) -> ModuleType:
    try:
        if module.endswith(".py"):
            return import_file(Path(module), "program", "put it there, or give its path", anew=True)
        return import_module(module, f"program {place}")
    except ConfigError:
        raise
    except Exception as error:  # a stranger's program raises anything
        where = line_of_error(error) or place
        raise ConfigError(f"{where} fails where it is imported: {type(error).__name__}: {error}") from error


def _is_program(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return len(value) == 2 and all(map(callable, value))
    return callable(getattr(value, "model", None)) and callable(getattr(value, "guide", None))


def _owner_of(made: Any) -> nn.Module | None:
    """Return the module whose `state_dict` a training script saves."""
    if isinstance(made, nn.Module):
        return made
    parts = list(made) if isinstance(made, (tuple, list)) else list(vars(made).values())
    holders = [getattr(part, "__self__", part) for part in parts]
    modules = list({id(each): each for each in holders if isinstance(each, nn.Module)}.values())
    with_weights = [module for module in modules if module.state_dict()]
    if len(with_weights) == 1:
        return with_weights[0]
    if not with_weights or isinstance(made, (tuple, list)):
        return None
    names = {name: value for name, value in vars(made).items() if isinstance(value, nn.Module)}
    return nn.ModuleDict(names)
