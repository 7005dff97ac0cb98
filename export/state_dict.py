"""Weights that were trained elsewhere with Pyro's VAE example."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from edgevae.train import VAE, ModelConfig

from .errors import StateDictError

_WEIGHTS = tuple(
    f"{network}.{layer}"
    for network, layers in (("encoder", ("fc1", "fc21", "fc22")), ("decoder", ("fc1", "fc21")))
    for layer in layers
)

_REMEDY = "write it with torch.save(vae.state_dict(), path)"
_WRAPPED = "module."
_READ_ERRORS = (OSError, EOFError, RuntimeError, ValueError, KeyError, IndexError, TypeError, AttributeError)


def load_state_dict(path: Path, data_shape: tuple[int, ...] | None = None) -> VAE:
    """Return the VAE whose `state_dict` is in the file; its sizes are inferred.

    Args:
        path: Written by `torch.save(vae.state_dict(), path)` or by safetensors; read without running any code in it.
        data_shape: Shape of an observation. By default `(1, side, side)` where the number of values is a square, else
            `(count,)`.

    Raises:
        StateDictError: The file cannot be read, or its tensors do not have the names and shapes of the example's.
    """
    state = _read(path)
    expected = {f"{name}.{kind}" for name in _WEIGHTS for kind in ("weight", "bias")}
    missing, extra = sorted(expected - state.keys()), sorted(state.keys() - expected)
    if missing or extra:
        raise StateDictError(
            f"{path} does not hold the reference VAE's weights: "
            f"missing {', '.join(missing) or 'nothing'}; not expected {', '.join(extra) or 'nothing'}"
        )
    config = _infer(path, state, data_shape)
    vae = VAE(config).eval()
    for name, parameter in vae.state_dict().items():
        if state[name].shape != parameter.shape:
            raise StateDictError(
                f"{path}: {name} must have shape {tuple(parameter.shape)} beside the other tensors, "
                f"got {tuple(state[name].shape)}"
            )
        if not torch.isfinite(state[name]).all():
            raise StateDictError(f"{path}: {name} holds NaN or infinity; the training that wrote it diverged")
    vae.load_state_dict(state)
    return vae


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (*_READ_ERRORS, safetensors.SafetensorError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StateDictError(f"{path} cannot be read as a state_dict: {reason}; {_REMEDY}") from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        raise StateDictError(f"{path} is a checkpoint with a state_dict inside; save checkpoint['state_dict'] alone")
    if isinstance(state, Mapping) and state.keys() == {"params", "constraints"}:
        raise StateDictError(f"{path} is Pyro's parameter store; save the module instead: {_REMEDY}")
    if not isinstance(state, Mapping) or not all(_is_weight(*item) for item in state.items()):
        raise StateDictError(f"{path} must hold names and dense float tensors, got other content; {_REMEDY}")
    if state and all(name.startswith(_WRAPPED) for name in state):
        raise StateDictError(
            f"{path} holds the weights of a wrapped model, whose names start with {_WRAPPED}; save model.module"
        )
    return dict(state)


def _is_weight(name: object, tensor: object) -> bool:
    if not isinstance(name, str) or not isinstance(tensor, Tensor):
        return False
    return tensor.is_floating_point() and tensor.layout is torch.strided


def _infer(path: Path, state: Mapping[str, Tensor], data_shape: tuple[int, ...] | None) -> ModelConfig:
    first, latent = state["encoder.fc1.weight"], state["encoder.fc21.weight"]
    if first.ndim != 2 or latent.ndim != 2:
        raise StateDictError(f"{path}: encoder.fc1.weight and encoder.fc21.weight must be matrices")
    (hidden_dim, data_dim), z_dim = first.shape, latent.shape[0]
    if data_shape is None:
        side = math.isqrt(data_dim)
        data_shape = (1, side, side) if side * side == data_dim else (data_dim,)
    elif math.prod(data_shape) != data_dim:
        raise StateDictError(f"{path} is for observations of {data_dim} values, got data_shape {data_shape}")
    return ModelConfig(data_shape, z_dim, hidden_dim)
