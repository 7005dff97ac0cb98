"""How likely, how unusual, what else: what a model says of observations in nats, and draws of its posterior."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import inputs as _inputs
from .core import Core
from .errors import InputError
from .noise import Noise, stream_of
from .particles import MOST_DRAWS, Terms, particle_noise, particles, posterior_draws

FloatArray = NDArray[np.float32]
Nats = NDArray[np.float64]
Eps: TypeAlias = "ArrayLike | Sequence[ArrayLike]"

_SCORE_PARTICLES = 10
"""Draws of z a row, as many as the quantiles in a manifest are made with."""
_SCORE_SEED = 0


class Score(msgspec.Struct, frozen=True, eq=False):
    """How well a model explains each observation, in nats, shape `(batch,)` each.

    NaN where float32 does not hold the model's numbers for a row: one that is far from what the model was fitted to,
    where the likelihood takes any range.

    Args:
        elbo: Estimated E_q[log p(x|z)] - KL(q(z|x) ‖ p(z)); the higher, the more usual.
        reconstruction: Its first part, E_q[log p(x|z)].
        kl: Its second part, KL(q(z|x) ‖ p(z)), estimated from the same draws; a hierarchy's is of all levels.
    """

    elbo: Nats
    reconstruction: Nats
    kl: Nats

    def below(self, threshold: float) -> NDArray[np.bool_]:
        """Return which rows' ELBO is not at least `threshold` nats, shape `(batch,)`: also those that have none."""
        return ~(self.elbo >= threshold)


class Estimation(Core):
    """The part of `Model` that estimates."""

    def posterior_predictive(
        self, x: ArrayLike, num_samples: int, seed: int | Noise, *, y: ArrayLike | None = None
    ) -> FloatArray:
        """Draw new observations of p(x'|x) = E_q(z|x)[p(x'|z)]: noise of the likelihood included.

        The distribution is that of Pyro's `Predictive(poutine.uncondition(vae.model), guide=vae.guide,
        num_samples=...)`; the draws of a seed are others.

        Args:
            x: Observations, as for `encode`.
            num_samples: Draws of a row, 0 or more.
            seed: Noise stream; a draw takes the noise of z and then that of x'. 0 to 2**64 - 1.
            y: Labels, for a conditional model.

        Returns:
            float32 in the units of the data, shape `(num_samples, batch, data_dim)`.

        Raises:
            InputError: An argument has another shape or dtype, or values out of range.
        """
        given, stream = self._observations.given(x, y), stream_of(seed)
        draws = np.empty((_inputs.count("num_samples", num_samples, MOST_DRAWS), *given["x"].shape), np.float32)
        for row, draw in zip(draws, posterior_draws(self._graphs, self._spec, given, stream), strict=False):
            row[:] = draw
        return draws

    def elbo(
        self,
        x: ArrayLike,
        seed: int | Noise | None = None,
        num_particles: int = 1,
        *,
        y: ArrayLike | None = None,
        eps: Eps | None = None,
    ) -> Nats:
        """Estimate the evidence lower bound of each row, E_q[log p(x|z) + log p(z) - log q(z|x)].

        Args:
            x: Observations, as for `encode`.
            seed: Noise stream of the particles, drawn one after the other as Pyro's `Trace_ELBO(num_particles)` does.
            num_particles: Draws of z a row, at least 1.
            y: Labels, for a conditional model; the bound is on log p(x|y) then.
            eps: The noise itself, shape `(num_particles, batch, z_dim)`, of a hierarchy a list of such, one a level,
                z's first. Give one of `seed` and `eps`.

        Returns:
            The mean over the particles, in nats, higher is better; shape `(batch,)`.

        Raises:
            InputError: An argument has another shape or dtype, or values out of range.
        """
        weights = (terms.log_weight for terms in self._particles(x, y, num_particles, seed, eps))
        total: Nats = functools.reduce(np.add, weights)
        return total / int(num_particles)

    def log_likelihood(
        self,
        x: ArrayLike,
        seed: int | Noise | None = None,
        num_particles: int = 1000,
        *,
        y: ArrayLike | None = None,
        eps: Eps | None = None,
    ) -> Nats:
        """Estimate log p(x) of each row from below, by importance weighting (Burda, Grosse & Salakhutdinov, 2016).

        Args:
            x: Observations, as for `encode`.
            seed: Noise stream of the particles, drawn one after the other.
            num_particles: Draws of z a row, at least 1; the bound rises to log p(x) with their number. Memory does not
                grow with it.
            y: Labels, for a conditional model; the bound is on log p(x|y) then.
            eps: The noise itself, as for `elbo`. Give one of `seed` and `eps`.

        Returns:
            log mean exp of the particles' log_px_z + log_pz - log_qz_x, in nats, shape `(batch,)`.

        Raises:
            InputError: An argument has another shape or dtype, or values out of range.
        """
        weights = (terms.log_weight for terms in self._particles(x, y, num_particles, seed, eps))
        total: Nats = functools.reduce(np.logaddexp, weights)
        return total - math.log(num_particles)

    def score(
        self,
        x: ArrayLike,
        seed: int | Noise | None = None,
        num_particles: int = _SCORE_PARTICLES,
        *,
        y: ArrayLike | None = None,
        eps: Eps | None = None,
    ) -> Score:
        """Return how unusual each row is, and why: the ELBO with its two parts.

        A VAE's likelihood is no judge of everything: simple images of other data can score above the model's own
        (Nalisnick et al., "Do Deep Generative Models Know What They Don't Know?", 2019). Try it on what you expect.

        Args:
            x: Observations, as for `encode`.
            seed: Noise stream of the particles; 0 where neither `seed` nor `eps` is given.
            num_particles: Draws of z a row, at least 1.
            y: Labels, for a conditional model.
            eps: The noise itself, as for `elbo`: with it, rows that were drawn for apart can be scored together.

        Raises:
            InputError: An argument has another shape or dtype, or values out of range.
        """
        if seed is None and eps is None:
            seed = _SCORE_SEED
        log_px_z, kl = functools.reduce(_add, self._particles(x, y, num_particles, seed, eps))
        reconstruction, kl = log_px_z / int(num_particles), kl / int(num_particles)
        return Score(reconstruction - kl, reconstruction, kl)

    def threshold(self, rate: float = 0.01) -> float:
        """Return the ELBO, in nats, below which a part of `rate` of the test images lies that the model was tested on.

        Args:
            rate: False alarms that are allowed, 0.001 to 0.999.

        Raises:
            InputError: `rate` is out of range, or the bundle does not know how its test images are distributed.
        """
        dataset = self.manifest.dataset
        if dataset is None or not dataset.elbo_quantiles:
            raise InputError(
                "this bundle holds no distribution of test images; compare score(x).elbo with your own data"
            )
        probabilities, values = zip(*dataset.elbo_quantiles, strict=True)
        rate = _inputs.number("rate", rate)
        if not probabilities[0] <= rate <= probabilities[-1]:
            raise InputError(f"rate must be from {probabilities[0]} to {probabilities[-1]}, got {rate}")
        return float(np.interp(rate, probabilities, values))

    def is_anomaly(
        self, x: ArrayLike, seed: int | Noise = _SCORE_SEED, *, y: ArrayLike | None = None, rate: float = 0.01
    ) -> NDArray[np.bool_]:
        """Return which rows are less likely than all but a part of `rate` of the test images, shape `(batch,)`.

        A row whose ELBO is NaN, because it is too far out for float32, is one of them.

        Args:
            x: Observations, as for `encode`, treated as the training data was: `manifest.dataset.binarize` says how.
            seed: Noise stream of the particles.
            y: Labels, for a conditional model.
            rate: False alarms that are allowed, 0.001 to 0.999.

        Raises:
            InputError: An argument does not fit, or the bundle does not know how its test images are distributed.
        """
        limit = self.threshold(rate)
        return self.score(x, seed, y=y).below(limit)

    def _particles(
        self, x: ArrayLike, y: ArrayLike | None, num_particles: int, seed: int | Noise | None, eps: Eps | None
    ) -> Iterator[Terms]:
        given = self._observations.given(x, y)
        noise = particle_noise(self._spec, len(given["x"]), num_particles, seed, eps)
        return particles(self._graphs, self._spec, given, noise)


def _add(first: Terms, second: Terms) -> Terms:
    return Terms(first.log_px_z + second.log_px_z, first.kl + second.kl)
