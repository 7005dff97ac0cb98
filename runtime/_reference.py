"""`reference.npz`: what Pyro itself computed for a set of rows, noise included."""

from __future__ import annotations

import dataclasses
import io
import zipfile

import numpy as np
from numpy.typing import NDArray

from ._errors import BundleError
from ._manifest import ModelSpec

FloatArray = NDArray[np.float32]


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """Inputs, noise and Pyro's outputs, a row each; all float32 but `case`.

    Args:
        case: What each row is: `zeros`, `ones`, or `sample`; shape `(rows,)`.
        x: Observations, shape `(rows, data_dim)`.
        eps: Noise, shape `(rows, z_dim)`.
        z_loc: The encoder's means, shape `(rows, z_dim)`.
        z_scale: The encoder's standard deviations, shape `(rows, z_dim)`.
        z: z_loc + z_scale * eps, shape `(rows, z_dim)`.
        loc_img: The decoder's output for `z`, shape `(rows, data_dim)`.
        elbo: log_px_z + log_pz - log_qz_x of Pyro's own traces, in nats, shape `(rows,)`.
    """

    case: NDArray[np.str_]
    x: FloatArray
    eps: FloatArray
    z_loc: FloatArray
    z_scale: FloatArray
    z: FloatArray
    loc_img: FloatArray
    elbo: FloatArray

    def encode(self) -> bytes:
        """Return the content of `reference.npz`."""
        arrays = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        return buffer.getvalue()

    @staticmethod
    def decode(content: bytes, model: ModelSpec) -> Reference:
        """Read `reference.npz`.

        Raises:
            BundleError: It is damaged, or its arrays do not fit the model.
        """
        names = [field.name for field in dataclasses.fields(Reference)]
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                reference = Reference(**{name: arrays[name] for name in names})
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise BundleError(f"reference.npz is damaged: {error}; export the model again") from error
        rows = len(reference.case)
        widths = {"x": model.data_dim, "loc_img": model.data_dim, "case": None, "elbo": None}
        for name in names:
            width = widths.get(name, model.z_dim)
            expected = (rows,) if width is None else (rows, width)
            found = getattr(reference, name)
            if found.shape != expected or (name != "case" and found.dtype != np.float32):
                raise BundleError(
                    f"reference.npz does not fit the model: {name} must be float32 of shape {expected}, "
                    f"got {found.dtype} of shape {found.shape}; export the model again"
                )
        return reference
