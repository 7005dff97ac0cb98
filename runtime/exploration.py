"""A look at the latent: paths between observations, and along its dimensions."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import inputs as _inputs
from .core import Core
from .errors import InputError

FloatArray = NDArray[np.float32]

_MOST_STEPS = 2**20
_ACTIVE = 0.01
"""Variance of a dimension's posterior mean over the data from which it counts as active (Burda et al., 2016)."""


class Exploration(Core):
    """The part of `Model` that looks at the latent."""

    def interpolate(self, x_a: ArrayLike, x_b: ArrayLike, steps: int, *, y: ArrayLike | None = None) -> FloatArray:
        """Decode the straight lines between the posterior means of pairs of observations.

        Args:
            x_a: Where the lines start, as for `encode`.
            x_b: Where they end, as many rows.
            steps: Points on a line, both ends included; 2 to 2**20.
            y: Labels, for a conditional model; the same along a line.

        Returns:
            `loc_img`, float32 in the units of the data, shape `(batch, steps, data_dim)`.

        Raises:
            InputError: An argument has another shape or dtype, or values out of range.
        """
        steps = _inputs.count("steps", steps, _MOST_STEPS)
        if steps < 2:
            raise InputError(f"steps must be at least 2, got {steps}")
        start, end = (np.asarray(self.encode(x, y=y).z_loc) for x in (x_a, x_b))
        if len(start) != len(end):
            raise InputError(f"x_a and x_b must have as many rows, got {len(start)} and {len(end)}")
        weights = np.linspace(0, 1, steps, dtype=np.float32)[None, :, None]
        return self._decode_rows((1 - weights) * start[:, None] + weights * end[:, None], y)

    def traverse(self, x: ArrayLike, dim: int, span: ArrayLike, *, y: ArrayLike | None = None) -> FloatArray:
        """Decode each observation's posterior mean with one dimension of z set to given values.

        Args:
            x: Observations, as for `encode`.
            dim: Which dimension, 0 to `z_dim - 1`; `active_units` says which matter.
            span: The values, shape `(steps,)`; for a standard normal latent -3 to 3 covers it.
            y: Labels, for a conditional model.

        Returns:
            `loc_img`, float32 in the units of the data, shape `(batch, steps, data_dim)`.

        Raises:
            InputError: An argument has another shape or dtype, or values out of range.
        """
        dim = _inputs.count("dim", dim)
        if dim >= self.z_dim:
            raise InputError(f"dim must be from 0 to {self.z_dim - 1}, got {dim}")
        values = _inputs.vector("span", span)
        z = np.repeat(np.asarray(self.encode(x, y=y).z_loc)[:, None], len(values), axis=1)
        z[:, :, dim] = values
        return self._decode_rows(z, y)

    def active_units(self, x: ArrayLike, *, y: ArrayLike | None = None) -> NDArray[np.bool_]:
        """Return which dimensions of z the model uses: those whose posterior mean varies over the observations.

        Args:
            x: Observations, as for `encode`; a few hundred or more, of the data that the model was trained on.
            y: Labels, for a conditional model.

        Returns:
            Whether Var_x(E_q(z|x)[z]) > 0.01 (Burda, Grosse & Salakhutdinov, 2016), shape `(z_dim,)`.

        Raises:
            InputError: An argument does not fit, or `x` has fewer than 2 rows.
        """
        z_loc = np.asarray(self.encode(x, y=y).z_loc)
        if len(z_loc) < 2:
            raise InputError(f"x must have at least 2 rows, whose means can vary, got {len(z_loc)}")
        return z_loc.astype(np.float64).var(axis=0) > _ACTIVE

    def _decode_rows(self, z: FloatArray, y: ArrayLike | None) -> FloatArray:
        """Decode z of shape `(batch, steps, z_dim)`, a row's label for all of its steps."""
        batch, steps, _ = z.shape
        labels = _inputs.labels(y, batch, self._spec).get("y")
        repeated = None if labels is None else np.repeat(labels, steps)
        return self.decode(z.reshape(-1, self.z_dim), y=repeated).reshape(batch, steps, self._spec.data_dim)
