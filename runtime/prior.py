"""Draws of the prior."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import inputs as _inputs
from .errors import InputError
from .graph import Graph
from .model_spec import ModelSpec
from .noise import Noise
from .signature import level_names


def draw_prior(
    model: ModelSpec, prior: Graph | None, n: int, stream: Noise, component: ArrayLike | None
) -> NDArray[np.float32]:
    """Return z of p(z), float32, shape `(n, z_dim)`.

    Args:
        model: Choices and sizes.
        prior: The graph of the prior; `None` where p(z) = N(0, I).
        n: How many.
        stream: Draws a mixture's components, where they are not given, and then the levels, the highest first.
        component: A mixture's component, or those of each row.

    Raises:
        InputError: `component` was given and the latent is no mixture, or it is out of range.
    """
    given: dict[str, NDArray[np.int64]] = {}
    if prior is not None and model.latent == "mixture":
        given["component"] = _components(model, prior, n, stream, component)
    elif component is not None:
        raise InputError(f"component must not be given: this model's latent is {model.latent}, not a mixture")
    names = level_names("eps", len(model.z_dims))
    eps = {
        name: stream.standard_normal((n, size)) for name, size in reversed(list(zip(names, model.z_dims, strict=True)))
    }
    return eps["eps"] if prior is None else prior({**given, **eps})["z_prior"]


def prior_probs(model: ModelSpec, prior: Graph) -> NDArray[np.float32]:
    """Return p(c) of a mixture's components, shape `(components,)`: what its graph was made with."""
    component, eps = np.zeros(1, np.int64), np.zeros((1, model.z_dim), np.float32)
    return prior({"component": component, "eps": eps})["prior_probs"][0]


def _components(
    model: ModelSpec, prior: Graph, n: int, stream: Noise, component: ArrayLike | None
) -> NDArray[np.int64]:
    if component is not None:
        return _inputs.choices("component", component, n, model.num_components)
    below = np.cumsum(prior_probs(model, prior))[:-1]  # the last one is 1, whatever its rounding says
    return np.searchsorted(below, stream.uniform(n), side="right")
