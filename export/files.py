"""Bundles and wheels, written completely or not at all, with errors that say what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from edgevae import MANIFEST_FILE
from edgevae import files as _files

from .errors import ExportError


def check_writable(out: Path, overwrite: bool) -> None:
    """Raise `ExportError` if a bundle cannot be written to `out` without losing what is there."""
    with _export_errors(out):
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return
        if not (out / MANIFEST_FILE).is_file():
            raise ExportError(f"{out} exists and is not a bundle; choose another --out")
    if not overwrite:
        raise ExportError(f"{out} already holds a bundle; choose another --out, or give --force to replace it")


@contextlib.contextmanager
def bundle_folder(out: Path, overwrite: bool) -> Iterator[Path]:
    """Give a temporary folder to write a bundle to; it takes the place of `out` at the end of the block.

    Args:
        out: The bundle's folder, an absolute path. Its parents are made.
        overwrite: Whether an existing bundle may be replaced.

    Raises:
        ExportError: `out` is in the way or cannot be written, or another export to it is under way.
    """
    check_writable(out, overwrite)
    with _export_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with _files.replace_folder(out, replace=overwrite) as folder:
            check_writable(out, overwrite)  # again, now that nobody else can write it
            try:
                yield folder
            except Exception as error:
                if folder.is_dir():
                    raise
                raise ExportError(f"{folder} was removed while the bundle was written there; export again") from error


def write_file(path: Path, content: bytes) -> None:
    """Write a file completely or not at all; its folder is made.

    Raises:
        ExportError: It cannot be written; what was there before stays.
    """
    with _export_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _files.write_file(path, content)


@contextlib.contextmanager
def _export_errors(out: Path) -> Iterator[None]:
    """Turn an `OSError` of the block into an `ExportError`."""
    try:
        yield
    except _files.BusyError as error:
        raise ExportError(f"another export to {out} is under way; wait for it, or choose another --out") from error
    except OSError as error:
        reason = error.reason if isinstance(error, _files.WriteError) else error
        raise ExportError(
            f"{out} could not be written: {reason}. What was there before is not lost. Make room, see to the folder's "
            "permissions, or choose another --out"
        ) from error
