"""Latents that know which model they belong to."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InputError

_Z, _SPACE = "z", "latent_space_id"


class Latents(np.ndarray[Any, np.dtype[np.float32]]):
    """Latents, float32, shape `(batch, z_dim)`: an array, and the `latent_space_id` of the model that gave them.

    What is computed from them keeps the id: `z_a + 0.5 * (z_b - z_a)` lies in that of `z_a`; `np.asarray` drops it.
    `save` and `load`, and pickling, keep it too.
    """

    latent_space_id: str | None

    @classmethod
    def of(cls, array: NDArray[np.float32], latent_space_id: str | None) -> Latents:
        """Return `array` as latents of a space, without a copy; `None` where the space is not known."""
        latents = array.view(cls)
        latents.latent_space_id = latent_space_id
        return latents

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Latents:
        """Read the latents of an `.npz` file: `z`, or else `z_loc`, and `latent_space_id`, which may be missing.

        Raises:
            InputError: The file cannot be read, or holds no latents.
        """
        arrays: dict[str, NDArray[Any]] = {}
        from .arrays import open_npz

        try:
            arrays, _ = open_npz(path, _Z, "z_loc", _SPACE)
        except InputError as error:
            raise InputError(f"{os.fspath(path)} {error}") from error
        except OSError as error:
            raise InputError(f"{os.fspath(path)} cannot be read: {error}") from error
        z = arrays.get(_Z, arrays.get("z_loc"))
        if z is None:
            raise InputError(f"{os.fspath(path)} must be an .npz file with an array z or z_loc in it")
        return cls.of(z, str(arrays[_SPACE]) if _SPACE in arrays else None)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the latents and their space to an `.npz` file, which `load` and `vae-run decode` read.

        Raises:
            OSError: The file cannot be written, and holds what it held before.
        """
        from pathlib import Path

        from .files import replace_file, write_errors  # what no other call needs

        arrays: dict[str, NDArray[Any]] = {_Z: np.asarray(self)}
        if self.latent_space_id is not None:
            arrays[_SPACE] = np.array(self.latent_space_id)
        path = Path(path)
        with replace_file(path) as part, write_errors(path), part.open("wb") as file:  # NumPy adds a suffix to a path
            np.savez(file, **arrays)  # type: ignore[arg-type]  # names are not options

    def __array_finalize__(self, source: NDArray[Any] | None) -> None:
        self.latent_space_id = getattr(source, _SPACE, None)

    def __reduce__(self) -> tuple[Any, ...]:
        return Latents.of, (np.asarray(self), self.latent_space_id)


def level_space(latent_space_id: str, level: int) -> str:
    """Return the name of a level's space: that of the model for level 1, which the decoder takes."""
    return latent_space_id if level == 1 else f"{latent_space_id} level {level}"


def check_latent_space(z: ArrayLike, latent_space_id: str) -> None:
    """Raise `InputError` if `z` knows its latent space and it is another one."""
    found = getattr(z, _SPACE, None)
    if found in (None, latent_space_id):
        return
    if str(found).startswith(latent_space_id):
        raise InputError(
            f"z is of {str(found)[len(latent_space_id) + 1 :]} of the hierarchy; decode takes level 1, z itself"
        )
    raise InputError(
        f"z is of latent space {str(found)[:16]}, this model's is {latent_space_id[:16]}: "
        "latents of one model mean nothing to another; np.asarray(z) decodes them all the same"
    )
