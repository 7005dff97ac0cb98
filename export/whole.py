"""Bundles and wheels that are written whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from edgevae import MANIFEST_FILE
from edgevae.train import whole as _whole

from .errors import ExportError


def check_writable(out: Path, overwrite: bool) -> None:
    """Raise `ExportError` if a bundle cannot be written to `out` without losing what is there."""
    with _errors(out):
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return
        if not (out / MANIFEST_FILE).is_file():
            raise ExportError(f"{out} is there and is not a bundle; choose another --out")
    if not overwrite:
        raise ExportError(f"{out} already holds a bundle; choose another --out, or give --force to replace it")


@contextlib.contextmanager
def whole_bundle(out: Path, overwrite: bool) -> Iterator[Path]:
    """Give a folder beside `out` to write a bundle to; it takes the place of `out` when the block ends.

    Whatever happens, a kill included, `out` holds what it held before, or the new bundle, or nothing if there was none.

    Args:
        out: The bundle's folder, an absolute path.
        overwrite: Whether a bundle that is there may be replaced.

    Raises:
        ExportError: `out` is in the way or cannot be written, or another export to it is under way.
    """
    check_writable(out, overwrite)
    with _errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with _whole.whole_folder(out, replace=overwrite) as folder:
            check_writable(out, overwrite)  # again: nobody else writes it now
            try:
                yield folder
            except Exception as error:
                if folder.is_dir():
                    raise
                raise ExportError(f"{folder} was removed while the bundle was written there; export again") from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place and rename it, so that it is never there in part.

    Raises:
        ExportError: It cannot be written; what was there before stays.
    """
    with _errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _whole.write_whole(path, content)


@contextlib.contextmanager
def _errors(out: Path) -> Iterator[None]:
    try:
        yield
    except _whole.BusyError as error:
        raise ExportError(f"another export to {out} is under way; wait for it, or choose another --out") from error
    except OSError as error:
        raise ExportError(
            f"{out} could not be written: {error}; what was there before stays. Make room, see to the folder's "
            "permissions, or choose another --out"
        ) from error
