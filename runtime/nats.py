"""Differences in the model's own units: nats."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]


def normal_kl(p_loc: FloatArray, p_scale: FloatArray, q_loc: FloatArray, q_scale: FloatArray) -> NDArray[np.float64]:
    """Return KL(N(p_loc, p_scale²) ‖ N(q_loc, q_scale²)) summed over the last axis, in nats, computed in float64."""
    p_loc, p_scale, q_loc, q_scale = (array.astype(np.float64) for array in (p_loc, p_scale, q_loc, q_scale))
    # (r² - 1)/2 - log r with r = p_scale / q_scale, by log1p: near r = 1 the plain form loses all its digits.
    excess = (p_scale - q_scale) / q_scale
    shape_part = 0.5 * excess * (2 + excess) - np.log1p(excess)
    divergence: NDArray[np.float64] = shape_part + 0.5 * ((p_loc - q_loc) / q_scale) ** 2
    return divergence.sum(-1)
