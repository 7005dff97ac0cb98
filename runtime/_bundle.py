"""A bundle on disk: the manifest, and files that are read once and checked against it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ._errors import BundleError, InputError
from ._manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, FileEntry, Manifest
from ._regular_file import read_regular_file
from ._trust import check_signature, read_public_key


class Bundle:
    """The folder of an exported model.

    Args:
        path: The folder.
        public_key: That of the one who must have signed it: the path of a PEM file, or PEM in bytes. `None` asks for no
            signature.

    Raises:
        BundleError: There is no bundle at `path`, or its manifest cannot be read.
        InputError: `path` is no path, or `public_key` no Ed25519 public key.
        InstallError: A `public_key` was given, and the package `cryptography` is not installed.
        SignatureError: The bundle is not signed, was altered after that, or was signed with another key.
    """

    def __init__(self, path: str | os.PathLike[str], public_key: str | os.PathLike[str] | bytes | None = None) -> None:
        try:
            self.path = Path(path)
        except TypeError as error:
            raise InputError(f"path must be that of a bundle's folder, got {type(path).__name__}") from error
        self._public_key = None if public_key is None else read_public_key(public_key)
        if not os.path.lexists(self.path / MANIFEST_FILE):
            raise BundleError(f"{self.path} is not a bundle: expected a folder with {MANIFEST_FILE} in it")
        content = read_regular_file(self.path / MANIFEST_FILE, MAX_MANIFEST_BYTES)
        if self._public_key is not None:  # before anything is made of these bytes
            check_signature(self.path, content, self._public_key)
        self.manifest = Manifest.decode(content)

    def __reduce__(self) -> tuple[type[Bundle], tuple[Path, bytes | None]]:
        return Bundle, (self.path.resolve(), self._public_key)

    def read(self, entry: FileEntry) -> bytes:
        """Return the content of a file of the bundle; what is returned is what was checked.

        Raises:
            BundleError: The file is missing, or its content is not what the manifest says.
        """
        path = self.path / entry.file
        content = read_regular_file(path, entry.size_bytes)
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise BundleError(
                f"{path} was changed after export: its SHA-256 is not the manifest's "
                f"({len(content)} bytes, expected {entry.size_bytes}); copy the whole bundle again"
            )
        return content
