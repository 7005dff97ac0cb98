"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from export._errors import ExportError
from runtime import MANIFEST_FILE


def check_writable(out: Path, overwrite: bool) -> None:
    """Raise `ExportError` if a bundle cannot be written to `out` without losing what is there."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / MANIFEST_FILE).is_file():
        raise ExportError(f"{out} is there and is not a bundle; choose another --out")
    if not overwrite:
        raise ExportError(f"{out} already holds a bundle; choose another --out, or give --force to replace it")


def replace_folder(temporary: Path, out: Path) -> None:
    """Put `temporary` in the place of `out`; the folder that was there goes only when the new one stands."""
    if not out.exists():
        temporary.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}-old-", dir=out.parent))
    out.rename(old / out.name)
    try:
        temporary.rename(out)
    except BaseException:  # Ctrl-C included: the old bundle goes back to its place
        (old / out.name).rename(out)
        old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place and rename it, so that it is never there in part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            Path(file.name).chmod(0o644)
            os.replace(file.name, path)  # noqa: PTH105 - file.name is a string
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
