"""Monte Carlo estimates over draws of the posterior: the ELBO's terms, scores, and new observations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import inputs as _inputs
from .errors import InputError
from .manifest import level_names
from .model_spec import ModelSpec
from .noise import Noise, stream_of
from .posterior import zero_noise
from .session import Arrays, Graphs

Nats = NDArray[np.float64]
Eps: TypeAlias = "ArrayLike | Sequence[ArrayLike]"

MAX_DRAWS = 2**31
SCORE_PARTICLES = 10
"""Draws of the latents for each row of a score; the quantiles in a manifest are made with as many."""
SCORE_SEED = 0
_ROWS = 512
"""Rows whose particles are computed together, so that memory does not grow with the batch."""


class Score(msgspec.Struct, frozen=True, eq=False):
    """How well a model explains each observation, in nats, shape `(batch,)` each.

    NaN or infinite if float32 cannot hold the model's numbers for a row: one far from the training data.

    Args:
        elbo: Estimate of E_q[log p(x|z)] - KL(q(z|x) ‖ p(z)); lower is more unusual.
        reconstruction: Its first term, E_q[log p(x|z)].
        kl: Its second term, KL(q(z|x) ‖ p(z)), from the same draws; for a hierarchy over all levels.
    """

    elbo: Nats
    reconstruction: Nats
    kl: Nats

    def to_dict(self) -> dict[str, list[float | None]]:
        """Return the fields as lists of floats, for `json.dumps`; NaN and infinity, which JSON lacks, as `None`."""
        return {
            name: [value if math.isfinite(value) else None for value in getattr(self, name).tolist()]
            for name in self.__struct_fields__
        }

    def below(self, threshold: float) -> NDArray[np.bool_]:
        """Return which rows have an ELBO below `threshold` nats, or none that is finite; shape `(batch,)`."""
        return ~(np.isfinite(self.elbo) & (self.elbo >= threshold))


class Terms(NamedTuple):
    """Terms of the ELBO for one draw of z, in nats, shape `(batch,)` each."""

    log_px_z: NDArray[np.float64]
    kl: NDArray[np.float64]

    def __add__(self, other: Terms) -> Terms:  # type: ignore[override]  # not the tuple's
        return Terms(self.log_px_z + other.log_px_z, self.kl + other.kl)

    @property
    def log_weight(self) -> NDArray[np.float64]:
        """log_px_z + log_pz - log_qz_x."""
        return self.log_px_z - self.kl


def particles(
    graphs: Graphs, model: ModelSpec, given: Arrays, noise: Iterator[list[NDArray[np.float32]]]
) -> Iterator[Terms]:
    """Yield log_px_z, and log_qz_x - log_pz, particle by particle.

    Args:
        graphs: The model's graphs.
        model: Its choices and sizes.
        given: `x` and, where there are labels, `y`.
        noise: The noise of each particle, as `particle_noise` returns it.
    """
    batch = len(given["x"])
    slices = [slice(start, start + _ROWS) for start in range(0, max(batch, 1), _ROWS)]
    parts = [_encoded(graphs, model, {name: array[rows] for name, array in given.items()}) for rows in slices]
    for eps in noise:
        terms = [_terms(graphs, part, [level[rows] for level in eps]) for part, rows in zip(parts, slices, strict=True)]
        yield Terms(*map(np.concatenate, zip(*terms, strict=True)))


def particle_noise(
    model: ModelSpec,
    batch: int,
    num_particles: int,
    seed: int | Noise | None,
    eps: ArrayLike | Sequence[ArrayLike] | None,
) -> Iterator[list[NDArray[np.float32]]]:
    """Return for each particle the noise of each level, shape `(batch, size of the level)`.

    Args:
        model: Choices and sizes.
        batch: Number of observations.
        num_particles: How many, at least 1.
        seed: Noise stream; a particle draws each level's noise for the whole batch, as Pyro's guide does.
        eps: The noise itself, shape `(num_particles, batch, z_dim)`; for a hierarchy a list, one for each level.

    Raises:
        InputError: An argument is out of range, or not one of `seed` and `eps` was given.
    """
    num_particles = _inputs.count("num_particles", num_particles, MAX_DRAWS)
    if num_particles == 0:
        raise InputError("num_particles must be at least 1, got 0")
    if (seed is None) == (eps is None):
        if seed is None:
            raise InputError("a seed is needed, an integer like seed=0, or eps; give one of seed and eps, got neither")
        raise InputError("give one of seed and eps, got both")
    if eps is None:
        stream = stream_of(seed)
        return ([stream.standard_normal((batch, size)) for size in model.z_dims] for _ in range(num_particles))
    levels = [eps] if len(model.z_dims) == 1 else eps
    if not isinstance(levels, (list, tuple)) or len(levels) != len(model.z_dims):
        raise InputError(f"eps must be a list of the noise of {len(model.z_dims)} levels, z's first")
    checked = [
        _inputs.noise(level, num_particles, batch, size) for level, size in zip(levels, model.z_dims, strict=True)
    ]
    return (list(particle) for particle in zip(*checked, strict=True))


def _encoded(graphs: Graphs, model: ModelSpec, given: Arrays) -> dict[str, NDArray[Any]]:
    outputs = graphs["encoder"]({**given, **zero_noise(model, len(given["x"]))})
    return {**given, "z_loc": outputs["z_loc"], "z_scale": outputs["z_scale"]}


def _terms(graphs: Graphs, part: Arrays, eps: list[NDArray[np.float32]]) -> Terms:
    arrays = {**part, "z": part["z_loc"] + part["z_scale"] * eps[0]}
    arrays.update(zip(level_names("eps", len(eps)), eps, strict=True))
    arrays.update(graphs["decoder"](arrays))
    terms = graphs["elbo"](arrays)
    log_px_z, log_pz, log_qz_x = (terms[name].astype(np.float64) for name in ("log_px_z", "log_pz", "log_qz_x"))
    return Terms(log_px_z, log_qz_x - log_pz)


def posterior_draws(graphs: Graphs, model: ModelSpec, given: Arrays, stream: Noise) -> Iterator[NDArray[np.float32]]:
    """Yield draws of p(x'|x), shape `(batch, data_dim)`, without end; each takes the noise of z and then that of x'."""
    part = _encoded(graphs, model, given)
    while True:
        part["z"] = part["z_loc"] + part["z_scale"] * stream.standard_normal(part["z_loc"].shape)
        parameters = graphs["decoder"](part)
        yield graphs["observation"]({**parameters, "eps_obs": stream.standard_normal(part["x"].shape)})["obs"]
