"""q(z|x), what an encoder makes of observations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import inputs as _inputs
from .errors import InputError
from .latents import Latents
from .model_spec import ModelSpec
from .noise import Noise, stream_of
from .signature import level_names


class Level(NamedTuple):
    """N(z_loc, z_scale²), independent in each dimension; a row for each observation.

    `z_loc` holds means, `z_scale` standard deviations, positive; float32, shape `(batch, size of the level)` each.
    """

    z_loc: Latents
    z_scale: NDArray[np.float32]


class Posterior(msgspec.Struct, frozen=True, eq=False):
    """q(z|x) = N(z_loc, z_scale²), independent in each dimension; a row for each observation.

    Args:
        z_loc: Means, float32, shape `(batch, z_dim)`.
        z_scale: Standard deviations, float32, positive, shape `(batch, z_dim)`.
        latent_space_id: The latent space that they lie in.
        upper: A hierarchy's levels above z, the lowest first, each given a draw or the mean of the one below it; see
            `Model.encode`. Empty for the other latents.
        component_probs: q(c|x) of a mixture's components, float32, shape `(batch, components)`: the best one beside
            q(z|x), proportional to p(c) exp E_q(z|x)[log p(z|c)]. `None` for the other latents.
    """

    z_loc: Latents
    z_scale: NDArray[np.float32]
    latent_space_id: str
    upper: tuple[Level, ...] = ()
    component_probs: NDArray[np.float32] | None = None

    @property
    def levels(self) -> tuple[Level, ...]:
        """All levels, that of z first."""
        return (Level(self.z_loc, self.z_scale), *self.upper)

    def sample(self, *, seed: int | Noise | None = None, eps: ArrayLike | None = None) -> Latents:
        """Draw z = z_loc + z_scale * eps (the reparameterization of Kingma & Welling, 2013).

        Args:
            seed: Noise stream to draw `eps` from, the same as PyTorch's CPU generator; 0 to 2**64 - 1.
            eps: The noise itself, shape `(batch, z_dim)`. Give one of the two.

        Returns:
            z, float32, shape `(batch, z_dim)`; it knows its latent space, and another model's `decode` refuses it.

        Raises:
            InputError: Neither or both were given, or one does not fit.
        """
        noise = draw_noise(self.z_loc.shape, seed, eps)
        if noise is None:
            raise InputError("sample needs seed=... or eps=...; the mean, without noise, is z_loc")
        return Latents.of(np.asarray(self.z_loc + self.z_scale * noise), self.latent_space_id)


def draw_noise(shape: tuple[int, ...], seed: int | Noise | None, eps: ArrayLike | None) -> NDArray[np.float32] | None:
    """Return the noise that a call asks for, shape `(batch, z_dim)`; `None` where it asks for none.

    Raises:
        InputError: Both `seed` and `eps` were given, or one does not fit.
    """
    if seed is not None and eps is not None:
        raise InputError("seed and eps were both given; give one of them")
    if eps is not None:
        return _inputs.noise(eps, *shape)
    return None if seed is None else stream_of(seed).standard_normal(shape)


def draw_lower_noise(
    model: ModelSpec, batch: int, seed: int | Noise | None, eps: Sequence[ArrayLike] | None
) -> dict[str, NDArray[np.float32]]:
    """Return the noise of each level but the highest, by name; zeros where a call asks for none.

    Raises:
        InputError: Both `seed` and `eps` were given, one does not fit, or there is but one level.
    """
    noise = zero_noise(model, batch)
    if seed is None and eps is None:
        return noise
    lower = model.z_dims[:-1]
    if not lower:
        raise InputError(
            "seed and eps are for the upper levels of a hierarchy, and this model has one level; drop them"
        )
    if seed is not None and eps is not None:
        raise InputError("seed and eps were both given; give one of them")
    if seed is not None:
        stream = stream_of(seed)
        drawn = [stream.standard_normal((batch, size)) for size in lower]
    elif isinstance(eps, (list, tuple)) and len(eps) == len(lower):
        drawn = [_inputs.noise(level, batch, size) for level, size in zip(eps, lower, strict=True)]
    else:
        got = len(eps) if isinstance(eps, (list, tuple)) else type(eps).__name__
        raise InputError(f"eps must be a list of the noise of {len(lower)} levels, all but the highest, got {got}")
    return {**noise, **dict(zip(noise, drawn, strict=False))}


def zero_noise(model: ModelSpec, batch: int) -> dict[str, NDArray[np.float32]]:
    """Return no noise, for each level."""
    names = level_names("eps", len(model.z_dims))
    return {name: np.zeros((batch, size), np.float32) for name, size in zip(names, model.z_dims, strict=True)}
