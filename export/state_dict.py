"""The VAE of Pyro's example, from weights that were trained elsewhere."""

from __future__ import annotations

import math

from edgevae.train import VAE, ModelConfig

from .errors import StateDictError
from .weights import Weights, few

REFERENCE_NAMES = frozenset(
    f"{network}.{layer}.{kind}"
    for network, layers in (("encoder", ("fc1", "fc21", "fc22")), ("decoder", ("fc1", "fc21")))
    for layer in layers
    for kind in ("weight", "bias")
)
"""The names in the `state_dict` of Pyro's VAE example."""


def reference_vae(weights: Weights, data_shape: tuple[int, ...] | None = None) -> VAE:
    """Return the VAE of Pyro's example with given weights; its sizes are inferred.

    Args:
        weights: Of `read_weights(path, REFERENCE_NAMES)`.
        data_shape: Shape of an observation. By default `(1, side, side)` where the number of values is a square, else
            `(count,)`.

    Raises:
        StateDictError: The tensors do not have the names and shapes of the example's.
    """
    path, state = weights.path, weights.tensors
    missing, extra = REFERENCE_NAMES - state.keys(), state.keys() - REFERENCE_NAMES
    if missing or extra:
        raise StateDictError(
            f"{path} does not hold the reference VAE's weights: "
            f"missing {few(missing) or 'nothing'}; not expected {few(extra) or 'nothing'}"
        )
    vae = VAE(_config_of(weights, data_shape)).eval()
    for name, parameter in vae.state_dict().items():
        if state[name].shape != parameter.shape:
            raise StateDictError(
                f"{path}: {name} must have shape {tuple(parameter.shape)} beside the other tensors, "
                f"got {tuple(state[name].shape)}"
            )
        if not state[name].is_floating_point():
            raise StateDictError(f"{path}: {name} must hold floats, got {state[name].dtype}")
    vae.load_state_dict(dict(state))
    return vae


def _config_of(weights: Weights, data_shape: tuple[int, ...] | None) -> ModelConfig:
    first, latent = weights.tensors["encoder.fc1.weight"], weights.tensors["encoder.fc21.weight"]
    if first.ndim != 2 or latent.ndim != 2 or not first.numel() or not latent.numel():
        raise StateDictError(f"{weights.path}: encoder.fc1.weight and encoder.fc21.weight must be matrices")
    (hidden_dim, data_dim), z_dim = first.shape, latent.shape[0]
    if data_shape is None:
        side = math.isqrt(data_dim)
        data_shape = (1, side, side) if side * side == data_dim else (data_dim,)
    elif math.prod(data_shape) != data_dim:
        raise StateDictError(f"{weights.path} is for observations of {data_dim} values, got shape {data_shape}")
    return ModelConfig(data_shape, z_dim, hidden_dim)
