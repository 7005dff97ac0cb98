"""A bundle on disk: the manifest, and files that are read once and checked against it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ._errors import BundleError
from ._manifest import MANIFEST_FILE, FileEntry, Manifest


class Bundle:
    """The folder of an exported model.

    Args:
        path: The folder.

    Raises:
        BundleError: There is no bundle at `path`, or its manifest cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not (self.path / MANIFEST_FILE).is_file():
            raise BundleError(f"{self.path} is not a bundle: expected a folder with {MANIFEST_FILE} in it")
        try:
            content = (self.path / MANIFEST_FILE).read_bytes()
        except OSError as error:
            raise BundleError(f"{self.path / MANIFEST_FILE} cannot be read: {error}") from error
        self.manifest = Manifest.decode(content)

    def __reduce__(self) -> tuple[type[Bundle], tuple[Path]]:
        return Bundle, (self.path.resolve(),)

    def read(self, entry: FileEntry) -> bytes:
        """Return the content of a file of the bundle; what is returned is what was checked.

        Raises:
            BundleError: The file is missing, or its content is not what the manifest says.
        """
        path = self.path / entry.file
        try:
            content = path.read_bytes()
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error}; copy the whole bundle again") from error
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise BundleError(
                f"{path} was changed after export: its SHA-256 is not the manifest's "
                f"({len(content)} bytes, expected {entry.size_bytes}); copy the whole bundle again"
            )
        return content
