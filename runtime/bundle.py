"""A bundle on disk: the manifest, and files that are read once and checked against it."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from .errors import BundleError, InputError
from .files import read_regular_file, regular_file_chunks
from .manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, FileEntry, Manifest
from .trust import check_signature, read_public_key

if TYPE_CHECKING:
    from pathlib import Path


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
        folder = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
        if not isinstance(folder, str):
            raise InputError(f"path must be that of a bundle's folder, got {type(path).__name__}")
        self._folder = folder or os.curdir
        self._public_key = None if public_key is None else read_public_key(public_key)
        manifest = os.path.join(self._folder, MANIFEST_FILE)
        if not os.path.lexists(manifest):
            raise BundleError(f"{self._folder} is not a bundle: expected a folder with {MANIFEST_FILE} in it")
        content = read_regular_file(manifest, MAX_MANIFEST_BYTES)
        if self._public_key is not None:  # before anything is made of these bytes
            check_signature(self._folder, content, self._public_key)
        self.manifest = Manifest.decode(content)

    def __reduce__(self) -> tuple[type[Bundle], tuple[str, bytes | None]]:
        return Bundle, (os.path.realpath(self._folder), self._public_key)

    @property
    def path(self) -> Path:
        """The folder."""
        from pathlib import Path  # with what it imports, three milliseconds that no model needs to start

        return Path(self._folder)

    def read(self, entry: FileEntry) -> bytes:
        """Return the content of a file of the bundle; what is returned is what was checked.

        Raises:
            BundleError: The file is missing, or its content is not what the manifest says.
        """
        content = read_regular_file(self._path(entry), entry.size_bytes)
        self._compare(entry, len(content), hashlib.sha256(content).hexdigest())
        return content

    def check(self, entry: FileEntry) -> None:
        """Read a file of the bundle, and keep nothing of it.

        Raises:
            BundleError: The file is missing, or its content is not what the manifest says.
        """
        size_bytes, digest = 0, hashlib.sha256()
        for piece in regular_file_chunks(self._path(entry), entry.size_bytes):
            size_bytes += len(piece)
            digest.update(piece)
        self._compare(entry, size_bytes, digest.hexdigest())

    def _path(self, entry: FileEntry) -> str:
        return os.path.join(self._folder, entry.file)

    def _compare(self, entry: FileEntry, size_bytes: int, sha256: str) -> None:
        if sha256 != entry.sha256:
            raise BundleError(
                f"{self._path(entry)} was changed after export: its SHA-256 is not the manifest's "
                f"({size_bytes} bytes, expected {entry.size_bytes}); copy the whole bundle again"
            )
