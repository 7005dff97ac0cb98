"""Pyro programs and their weights from files: what `vae-export --program` reads."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.params.param_store import StateDict, normalize_param_name
from torch import Tensor, nn

from edgevae.arrays import open_npz
from edgevae.errors import InputError
from edgevae.train import ConfigError
from edgevae.train.importing import import_file, import_module
from edgevae.train.program import example_of
from edgevae.train.tracing import line_of_error

from .errors import ExportError, StateDictError
from .weights import Weights, few, read_weights

_FORM = "FILE.py:NAME or module:NAME"
_COUNTERS = "num_batches_tracked"  # of BatchNorm: nothing reads them after the training


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

    Raises:
        ExportError: There is no such file, module or name, or it is something else.
    """
    module, separator, name = place.rpartition(":")
    if not separator or not module or not name.isidentifier():
        raise ExportError(f"a program must be given as {_FORM}, got {place!r}")
    try:
        if module.endswith(".py"):
            imported = import_file(Path(module), "program", "give its path")
        else:
            imported = import_module(module, f"program {place}")
    except ConfigError as error:
        raise ExportError(str(error)) from error
    if (found := getattr(imported, name, None)) is None:
        known = [key for key, value in vars(imported).items() if callable(value) and not key.startswith("_")]
        raise ExportError(f"there is no {name} in {module}; it has {few(known) or 'no functions and classes'}")
    made = found
    if callable(found) and (isinstance(found, type) or not _is_program(found)):
        try:
            inspect.signature(found).bind()
        except TypeError as error:
            raise ExportError(
                f"{place} cannot be called without arguments: {error}. Write a function that makes the program, like "
                f"def make(): return {name}(...), and give its name"
            ) from error
        try:
            made = found()
        except Exception as error:  # a stranger's program raises anything
            where = line_of_error(error) or place
            raise ExportError(f"{where} fails where the program is made: {type(error).__name__}: {error}") from error
    if not _is_program(made):
        raise ExportError(
            f"{place} must be an object with model and guide, a class or function that makes one without arguments, or "
            f"a pair (model, guide), got {type(made).__name__}"
        )
    model, guide = made if isinstance(made, (tuple, list)) else (made.model, made.guide)
    return LoadedProgram(name, model, guide, _owner_of(made))


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


def read_example(path: Path) -> dict[str, Tensor]:
    """Read the arguments of a program from an `.npz` file, by their names.

    Raises:
        ExportError: The file cannot be read, or holds no arrays.
    """
    try:
        _, names = open_npz(path)
        arrays, _ = open_npz(path, *names)
    except (InputError, OSError) as error:
        raise ExportError(
            f"{path} must be an .npz file with an array for each argument of the program, as "
            f"numpy.savez(file, x=...) writes it: {error}"
        ) from error
    if not arrays:
        raise ExportError(f"{path} holds no arrays; write it with numpy.savez(file, x=...)")
    return example_of(arrays)


def load_weights(program: LoadedProgram, path: Path, example: Mapping[str, Tensor], key: str | None = None) -> Weights:
    """Load weights into a program, and into Pyro's parameter store where the file is one.

    Args:
        program: The program.
        path: The weights, in any form that `read_weights` takes.
        example: Arguments of the program. A parameter store belongs to whatever the program registers when it runs.
        key: Which of several sets of weights to take.

    Returns:
        The weights; their `notes` are for the user.

    Raises:
        StateDictError: The file holds no weights, or those of another program.
    """
    names = None if program.owner is None else program.owner.state_dict().keys()
    weights = read_weights(path, names, key)
    if weights.store is not None:
        _load_store(program, weights, weights.store, example)
    elif program.owner is None:
        raise StateDictError(
            f"{path} holds a state_dict, and {program.name} has no module that it belongs to; save the parameters with "
            "pyro.get_param_store().save(path), or give an object that is an nn.Module"
        )
    else:
        _load_state(program.owner, weights)
    return weights


def _load_state(owner: nn.Module, weights: Weights) -> None:
    state = owner.state_dict()
    missing = [name for name in state if name not in weights.tensors and not name.endswith(_COUNTERS)]
    extra = [name for name in weights.tensors if name not in state]
    if missing or extra:
        raise StateDictError(
            f"{weights.path} does not hold the program's weights: missing {few(missing) or 'nothing'}; not expected "
            f"{few(extra) or 'nothing'}"
        )
    for name, tensor in weights.tensors.items():
        if tensor.shape != state[name].shape:
            raise StateDictError(
                f"{weights.path}: {name} must have shape {tuple(state[name].shape)}, got {tuple(tensor.shape)}; was "
                "the program made with other sizes?"
            )
    owner.load_state_dict({**state, **weights.tensors})


def _load_store(program: LoadedProgram, weights: Weights, store: StateDict, example: Mapping[str, Tensor]) -> None:
    """Give the parameters that a program registers the values of a store."""
    pyro.clear_param_store()
    with torch.no_grad(), torch.random.fork_rng([]), pyro.validation_enabled(False):
        traces = [poutine.trace(each, param_only=True).get_trace(**example) for each in (program.guide, program.model)]
    registered = {
        name: node["args"][1] if len(node["args"]) > 1 else None
        for trace in traces
        for name, node in trace.nodes.items()
        if node["type"] == "param"
    }
    stored = set(store["params"])
    if missing := [name for name in registered if name not in stored]:
        raise StateDictError(
            f"{weights.path} is Pyro's parameter store of another program: missing {few(missing)}; it holds "
            f"{few(stored)}"
        )
    pyro.get_param_store().set_state(store)
    with torch.no_grad():
        for name, parameter in registered.items():
            value = pyro.get_param_store()[name]
            if isinstance(parameter, nn.Parameter):
                if parameter.shape != value.shape:
                    raise StateDictError(
                        f"{weights.path}: {normalize_param_name(name)} must have shape {tuple(parameter.shape)}, got "
                        f"{tuple(value.shape)}; was the program made with other sizes?"
                    )
                parameter.copy_(value)
    _check_buffers(program, weights)


def _check_buffers(program: LoadedProgram, weights: Weights) -> None:
    """Refuse a store for networks with running statistics, which it does not hold."""
    buffers = [] if program.owner is None else [name for name, _ in program.owner.named_buffers()]
    if missing := [name for name in buffers if name.endswith(("running_mean", "running_var"))]:
        raise StateDictError(
            f"{weights.path} is Pyro's parameter store, which holds no running statistics, and the program needs "
            f"{few(missing)}; save the module's state_dict instead"
        )
