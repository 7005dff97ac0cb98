"""Latents that know which model they belong to."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._errors import InputError


class Latents(np.ndarray[Any, np.dtype[np.float32]]):
    """Latents, float32, shape `(batch, z_dim)`: an array, and the `latent_space_id` of the model that gave them.

    What is computed from them keeps the id: `z_a + 0.5 * (z_b - z_a)` lies in that of `z_a`; `np.asarray` drops it.
    """

    latent_space_id: str | None

    @classmethod
    def of(cls, array: NDArray[np.float32], latent_space_id: str) -> Latents:
        """Return `array` as latents of a space, without a copy."""
        latents = array.view(cls)
        latents.latent_space_id = latent_space_id
        return latents

    def __array_finalize__(self, source: NDArray[Any] | None) -> None:
        self.latent_space_id = getattr(source, "latent_space_id", None)


def level_space(latent_space_id: str, level: int) -> str:
    """Return the name of a level's space: that of the model for level 1, which the decoder takes."""
    return latent_space_id if level == 1 else f"{latent_space_id} level {level}"


def check_latent_space(z: ArrayLike, latent_space_id: str) -> None:
    """Raise `InputError` if `z` knows its latent space and it is another one."""
    found = getattr(z, "latent_space_id", None)
    if found in (None, latent_space_id):
        return
    if str(found).startswith(latent_space_id):
        raise InputError(
            f"z is of {str(found)[len(latent_space_id) + 1 :]} of the hierarchy; decode takes level 1, z itself"
        )
    if found != latent_space_id:
        raise InputError(
            f"z is of latent space {str(found)[:16]}, this model's is {latent_space_id[:16]}: "
            "latents of one model mean nothing to another; np.asarray(z) decodes them all the same"
        )
