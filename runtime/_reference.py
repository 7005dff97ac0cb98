"""`reference.npz`: what Pyro itself computed for a set of rows, noise included."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._errors import BundleError

_CASE = "case"


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """The inputs of all graphs and Pyro's outputs for them, by their names; a row each.

    Args:
        case: What each row is: `sample`, `zeros` or `ones`; shape `(rows,)`.
        arrays: float32 or int64, shape `(rows, ...)` each: all that goes in and out of the graphs, by the names there;
            `z` = z_loc + z_scale * eps, and `log_px_z`, `log_pz` and `log_qz_x` of Pyro's own traces, in nats.
    """

    case: NDArray[np.str_]
    arrays: Mapping[str, NDArray[Any]]

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return an array.

        Raises:
            BundleError: The reference has none of this name.
        """
        if name not in self.arrays:
            raise BundleError(f"reference.npz holds no {name}; export the model again")
        return self.arrays[name]

    @property
    def elbo(self) -> NDArray[np.float64]:
        """log_px_z + log_pz - log_qz_x of each row, in nats."""
        return self["log_px_z"].astype(np.float64) + self["log_pz"] - self["log_qz_x"]

    def only(self, names: Collection[str]) -> Reference:
        """Return the reference with these arrays only."""
        return Reference(self.case, {name: array for name, array in self.arrays.items() if name in names})

    def encode(self) -> bytes:
        """Return the content of `reference.npz`."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{_CASE: self.case, **self.arrays})  # type: ignore[arg-type]  # names are not options
        return buffer.getvalue()

    @staticmethod
    def decode(content: bytes) -> Reference:
        """Read `reference.npz`.

        Raises:
            BundleError: It is damaged.
        """
        import zipfile  # takes milliseconds that only a verification needs

        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            case = arrays.pop(_CASE)
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise BundleError(f"reference.npz is damaged: {error}; export the model again") from error
        for name, array in arrays.items():
            if array.dtype not in (np.float32, np.int64) or array.shape[:1] != case.shape:
                raise BundleError(
                    f"reference.npz is damaged: {name} must be float32 or int64 with {case.shape} rows, "
                    f"got {array.dtype} of shape {array.shape}; export the model again"
                )
        return Reference(case, arrays)
