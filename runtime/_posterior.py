"""q(z|x), what an encoder makes of observations."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _inputs
from ._errors import InputError
from ._latents import Latents
from ._noise import Noise


@dataclasses.dataclass(frozen=True, eq=False)
class Posterior:
    """q(z|x) = N(z_loc, z_scale²), independent in each dimension; a row for each observation.

    Args:
        z_loc: Means, float32, shape `(batch, z_dim)`.
        z_scale: Standard deviations, float32, positive, shape `(batch, z_dim)`.
        latent_space_id: The latent space that they lie in.
    """

    z_loc: Latents
    z_scale: NDArray[np.float32]
    latent_space_id: str

    def sample(self, *, seed: int | None = None, eps: ArrayLike | None = None) -> Latents:
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


def draw_noise(shape: tuple[int, ...], seed: int | None, eps: ArrayLike | None) -> NDArray[np.float32] | None:
    """Return the noise that a call asks for, shape `(batch, z_dim)`; `None` where it asks for none.

    Raises:
        InputError: Both `seed` and `eps` were given, or one does not fit.
    """
    if seed is not None and eps is not None:
        raise InputError("seed and eps were both given; give one of them")
    if eps is not None:
        return _inputs.noise(eps, *shape)
    return None if seed is None else Noise(seed).standard_normal(shape)
