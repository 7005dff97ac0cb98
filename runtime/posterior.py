"""q(z|x), draws of it and of the prior, and latents that know which model they belong to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import inputs as _inputs
from .arrays import open_npz
from .errors import InputError
from .files import replace_file, write_errors
from .manifest import level_names
from .model_spec import ModelSpec
from .noise import Noise, stream_of
from .session import Graph

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
        arrays: dict[str, NDArray[Any]] = {_Z: np.asarray(self)}
        if self.latent_space_id is not None:
            arrays[_SPACE] = np.array(self.latent_space_id)
        path = Path(path)
        with replace_file(path) as part, write_errors(path), part.open("wb") as file:  # NumPy adds a suffix to a path
            np.savez(file, **arrays)  # type: ignore[arg-type]  # names are not options

    def to_dict(self) -> dict[str, Any]:
        """Return `z` as lists of floats and `latent_space_id`, for `json.dumps`."""
        return {_Z: self.tolist(), _SPACE: self.latent_space_id}

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
        upper: The levels of a hierarchy above z, the lowest first. Each depends on a draw, or on the mean, of the level
            below; see `Model.encode`. Empty for the other latents.
        component_probs: q(c|x) of a mixture's components, float32, shape `(batch, components)`: the optimum for this
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

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as lists of floats, for `json.dumps`; a level of `upper` as `z_loc` and `z_scale`."""
        return {
            "z_loc": self.z_loc.tolist(),
            "z_scale": self.z_scale.tolist(),
            _SPACE: self.latent_space_id,
            "upper": [{"z_loc": level.z_loc.tolist(), "z_scale": level.z_scale.tolist()} for level in self.upper],
            "component_probs": None if self.component_probs is None else self.component_probs.tolist(),
        }

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
    lower = model.z_dims[:-1]
    if seed is None and eps is None:
        return zero_noise(model, batch) if lower else {}
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
    return dict(zip(level_names("eps", len(lower)), drawn, strict=True))


def zero_noise(model: ModelSpec, batch: int) -> dict[str, NDArray[np.float32]]:
    """Return zeros as the noise of each level."""
    names = level_names("eps", len(model.z_dims))
    return {name: np.zeros((batch, size), np.float32) for name, size in zip(names, model.z_dims, strict=True)}


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
