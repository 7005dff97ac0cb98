"""A bundle on disk: the manifest, its signature, and files that are read once and checked against the manifest.

A signature is Ed25519 (RFC 8032) over the bytes of the manifest, which holds the SHA-256 of every file. The package
`cryptography` is imported only where a public key was given.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import BundleError, InputError, InstallError, SignatureError
from .files import read_regular_file, regular_file_chunks
from .manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, FileEntry, Manifest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SIGNATURE_FILE = f"{MANIFEST_FILE}.sig"
"""The signature, 64 raw bytes, as `openssl pkeyutl -verify -rawin -sigfile` takes it."""

_SIGNATURE_BYTES = 64
_MAX_KEY_BYTES = 2**16
_WANTED = "expected a PEM file of an Ed25519 public key, like openssl pkey -in key.pem -pubout makes one"


class Bundle:
    """The folder of an exported model.

    Args:
        path: The folder; also an attribute.
        public_key: Ed25519 public key of the signer: the path of a PEM file, or PEM as bytes. `None` asks for no
            signature.

    Raises:
        BundleError: There is no bundle at `path`, or its manifest cannot be read.
        InputError: `path` is no path, or `public_key` no Ed25519 public key.
        InstallError: A `public_key` was given, and the package `cryptography` is not installed.
        SignatureError: The bundle is not signed, was signed with another key, or was altered later.
    """

    def __init__(self, path: str | os.PathLike[str], public_key: str | os.PathLike[str] | bytes | None = None) -> None:
        try:
            self.path = Path(path)
        except TypeError as error:
            raise InputError(f"path must be that of a bundle's folder, got {type(path).__name__}") from error
        self._public_key = None if public_key is None else read_public_key(public_key)
        manifest = self.path / MANIFEST_FILE
        if not os.path.lexists(manifest):
            raise BundleError(f"{self.path} is not a bundle: expected a folder with {MANIFEST_FILE} in it")
        content = read_regular_file(str(manifest), MAX_MANIFEST_BYTES)
        if self._public_key is not None:  # before anything is made of these bytes
            check_signature(self.path, content, self._public_key)
        self.manifest = Manifest.decode(content)

    def __reduce__(self) -> tuple[type[Bundle], tuple[str, bytes | None]]:
        return Bundle, (os.path.realpath(self.path), self._public_key)

    def read(self, entry: FileEntry) -> bytes:
        """Return the content of a file of the bundle, after it was checked.

        Raises:
            BundleError: The file is missing, or its content is not what the manifest says.
        """
        content = read_regular_file(str(self.path / entry.file), entry.size_bytes)
        self._compare(entry, len(content), hashlib.sha256(content).hexdigest())
        return content

    def check(self, entry: FileEntry) -> None:
        """Check a file of the bundle, without keeping its content.

        Raises:
            BundleError: The file is missing, or its content is not what the manifest says.
        """
        size_bytes, digest = 0, hashlib.sha256()
        for piece in regular_file_chunks(str(self.path / entry.file), entry.size_bytes):
            size_bytes += len(piece)
            digest.update(piece)
        self._compare(entry, size_bytes, digest.hexdigest())

    def _compare(self, entry: FileEntry, size_bytes: int, sha256: str) -> None:
        if sha256 != entry.sha256:
            raise BundleError(
                f"{self.path / entry.file} was changed after export: its SHA-256 is not the manifest's "
                f"({size_bytes} bytes, expected {entry.size_bytes}); copy the whole bundle again"
            )


def read_public_key(public_key: str | os.PathLike[str] | bytes) -> bytes:
    """Return a public key as PEM, from a file or as it was given.

    Raises:
        InputError: There is no such file, or what it holds is no Ed25519 public key.
        InstallError: The package `cryptography` is not installed.
    """
    if isinstance(public_key, bytes):
        name, pem = "public_key", public_key
    else:
        try:
            name = os.fspath(public_key)
            with Path(public_key).open("rb") as file:
                pem = file.read(_MAX_KEY_BYTES)
        except TypeError as error:
            raise InputError(f"public_key must be a path, or PEM in bytes, got {type(public_key).__name__}") from error
        except (OSError, ValueError) as error:
            raise InputError(f"public_key cannot be read: {error}; {_WANTED}") from error
    _parse(name, pem)
    return pem


def check_signature(folder: Path, manifest: bytes, public_key: bytes) -> None:
    """Refuse a bundle whose manifest was not signed with the private key of `public_key`.

    Args:
        folder: The bundle's folder, with the signature in it.
        manifest: The bytes of the manifest.
        public_key: PEM, as `read_public_key` returns it.

    Raises:
        SignatureError: The bundle is not signed, was signed with another key, or was altered later.
    """
    from cryptography.exceptions import InvalidSignature

    path = folder / SIGNATURE_FILE
    if not os.path.lexists(path):
        raise SignatureError(
            f"{folder} is not signed: it has no {SIGNATURE_FILE}; take it from whoever signs it, or, if it may come "
            "from anyone, load it without public_key"
        )
    try:
        signature = read_regular_file(str(path), _SIGNATURE_BYTES)
    except BundleError as error:
        raise SignatureError(str(error)) from error
    if len(signature) != _SIGNATURE_BYTES:
        raise SignatureError(
            f"{path} is no signature: it has {len(signature)} bytes, expected {_SIGNATURE_BYTES}; copy the whole "
            "bundle again"
        )
    try:
        _parse("public_key", public_key).verify(signature, manifest)
    except InvalidSignature as error:
        raise SignatureError(
            f"{folder / MANIFEST_FILE} was altered after it was signed, or signed with another key than "
            "the one that was given; do not use this bundle, take it again from where it was signed"
        ) from error


def _parse(name: str, pem: bytes) -> Ed25519PublicKey:
    """Return the key in a PEM file; `name` is its name in messages."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError as error:
        raise InstallError(
            "public_key needs the package cryptography, which is not installed; pip install 'edgevae[signing]'"
        ) from error
    if b"PRIVATE KEY-----" in pem:
        raise InputError(
            f"{name} holds a private key, which only the one who signs may have; {_WANTED}, and keep the private one "
            "to yourself"
        )
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(f"{name} holds no public key: {error}; {_WANTED}") from error
    if not isinstance(key, Ed25519PublicKey):
        kind = type(key).__name__.lstrip("_").removesuffix("PublicKey")
        raise InputError(f"{name} holds a public key of another kind, {kind}; {_WANTED}")
    return key
