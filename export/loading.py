"""The weights and the example of a Pyro program, from files: what `vae-export --program` reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyro
import torch
from pyro import poutine
from pyro.params.param_store import StateDict, normalize_param_name
from torch import Tensor, nn

from edgevae.arrays import open_npz
from edgevae.errors import InputError
from edgevae.train.program import LoadedProgram, example_of

from .errors import ExportError, StateDictError
from .weights import Weights, few, read_weights

_COUNTERS = "num_batches_tracked"  # of BatchNorm: nothing reads them after the training


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
