"""`reference.npz`: what Pyro itself computed for a set of rows, noise included."""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from .arrays import ArrayHeader, Npz
from .bundle import Bundle
from .errors import BundleError, InputError
from .manifest import TensorSpec

_CASE = "case"
_SAMPLE = "sample"
_CASES = (_SAMPLE, "zeros", "ones")
_MAX_ROWS = 1024  # the exporter writes 256
_VALUE_BYTES, _TEXT_BYTES, _OVERHEAD_BYTES = 8, 64, 2**16


class Reference(msgspec.Struct, frozen=True, eq=False):
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
    def of(bundle: Bundle) -> Reference:
        """Read a bundle's reference.

        Raises:
            BundleError: It is missing, changed or damaged, or does not fit the manifest.
        """
        graphs = bundle.manifest.graphs.values()
        tensors = {spec.name: spec for graph in graphs for spec in (*graph.inputs, *graph.outputs)}
        reference = bundle.manifest.reference
        row_bytes = sum(_TEXT_BYTES + math.prod(spec.row_shape) * _VALUE_BYTES for spec in tensors.values())
        if tensors and reference.size_bytes > _MAX_ROWS * row_bytes + _OVERHEAD_BYTES:
            raise _damaged(f"it has {reference.size_bytes} bytes, more than what goes in and out of the graphs")
        return Reference.decode(bundle.read(reference), tensors)

    @staticmethod
    def decode(content: bytes, tensors: Mapping[str, TensorSpec] | None = None) -> Reference:
        """Read `reference.npz`.

        Args:
            content: The file.
            tensors: What goes in and out of the graphs, by name: there may be nothing else. Without it, and where it is
                empty, there may be anything.

        Raises:
            BundleError: It is damaged.
        """
        npz, headers = _open(content)
        case = headers.pop(_CASE, None)
        if case is None or len(case.shape) != 1 or case.dtype.kind != "U" or not 0 < case.shape[0] <= _MAX_ROWS:
            raise _damaged(f"it must say for 1 to {_MAX_ROWS} rows which case each of them is")
        for name, entry in headers.items():
            spec = (tensors or {}).get(name)
            if entry.dtype.kind == "U" or entry.shape[0] != case.shape[0]:
                raise _damaged(
                    f"{name!a} must be float32 or int64 with {case.shape[0]} rows, got {entry.dtype} of shape "
                    f"{entry.shape}"
                )
            if tensors and (spec is None or (entry.dtype.name, entry.shape[1:]) != (spec.dtype, spec.row_shape)):
                expected = "nothing of this name" if spec is None else f"{spec.dtype} with rows of {spec.row_shape}"
                raise _damaged(f"{name!a} must be {expected}, got {entry.dtype} of shape {entry.shape}")
        try:
            cases = npz[_CASE]
            arrays = {name: npz[name] for name in headers}
        except InputError as error:
            raise _damaged(str(error)) from error
        if not np.isin(cases, _CASES).all() or _SAMPLE not in cases:
            raise _damaged(f"each row must be one of {', '.join(_CASES)}, and one at least a {_SAMPLE}")
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise _damaged(f"{name!a} holds NaN or infinity")
        return Reference(cases, arrays)


def _open(content: bytes) -> tuple[Npz, dict[str, ArrayHeader]]:
    """Return the archive, and the headers of its arrays: float32, int64 or text in rows."""
    try:
        npz = Npz(io.BytesIO(content), untrusted=True)
        headers = {name: npz.header(name) for name in npz}
    except InputError as error:
        raise _damaged(str(error)) from error
    for name, header in headers.items():
        known = header.dtype.kind == "U" or header.dtype in {np.dtype(np.float32), np.dtype(np.int64)}
        if not known or not header.shape or header.fortran_order:
            raise _damaged(f"{name!a} is no array of float32, int64 or text in rows")
    return npz, headers


def _damaged(why: str) -> BundleError:
    return BundleError(f"reference.npz is damaged: {why}; export the model again")
