"""Differences in the model's own units: nats."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]
_FLOAT32_EPSILON = np.finfo(np.float32).eps


def normal_log_prob(value: Float64Array, loc: Float64Array, scale: Float64Array) -> Float64Array:
    """Return log N(value; loc, scale²) summed over the last axis, in nats."""
    standard = (value - loc) / scale
    density: Float64Array = -0.5 * standard**2 - np.log(scale) - 0.5 * np.log(2 * np.pi)
    return density.sum(-1)


def normal_kl(p_loc: Float64Array, p_scale: Float64Array, q_loc: Float64Array, q_scale: Float64Array) -> Float64Array:
    """Return KL(N(p_loc, p_scale²) ‖ N(q_loc, q_scale²)) summed over the last axis, in nats."""
    # (r² - 1)/2 - log r with r = p_scale / q_scale, by log1p: near r = 1 the plain form loses all its digits.
    excess = (p_scale - q_scale) / q_scale
    shape_part = 0.5 * excess * (2 + excess) - np.log1p(excess)
    divergence: Float64Array = shape_part + 0.5 * ((p_loc - q_loc) / q_scale) ** 2
    return divergence.sum(-1)


def bernoulli_log_prob(x: Float64Array, loc_img: NDArray[np.float32]) -> Float64Array:
    """Return log p(x|z) of grey-scale `x` in [0, 1], summed over the last axis, in nats.

    Probabilities are kept a float32 epsilon from 0 and 1, as `torch.distributions.Bernoulli` does.
    """
    probs = loc_img.clip(_FLOAT32_EPSILON, np.float32(1) - _FLOAT32_EPSILON).astype(np.float64)
    log_prob: Float64Array = x * np.log(probs) + (1 - x) * np.log1p(-probs)
    return log_prob.sum(-1)


def elbo(
    x: Float64Array, z: Float64Array, z_loc: Float64Array, z_scale: Float64Array, loc_img: NDArray[np.float32]
) -> Float64Array:
    """Return the one-sample ELBO of each row, log p(x|z) + log p(z) - log q(z|x), in nats."""
    log_px_z = bernoulli_log_prob(x, loc_img)
    log_pz = normal_log_prob(z, np.zeros_like(z), np.ones_like(z))
    log_qz_x = normal_log_prob(z, z_loc, z_scale)
    return log_px_z + log_pz - log_qz_x
