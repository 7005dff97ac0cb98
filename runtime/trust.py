"""Signatures of bundles: Ed25519 (RFC 8032) over the bytes of the manifest, which holds the SHA-256 of every file.

The package `cryptography` is imported only where a public key was given.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .errors import BundleError, InputError, InstallError, SignatureError
from .files import read_regular_file
from .manifest import MANIFEST_FILE

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SIGNATURE_FILE = f"{MANIFEST_FILE}.sig"
"""The signature, 64 raw bytes, as `openssl pkeyutl -verify -rawin -sigfile` takes it."""

_SIGNATURE_BYTES = 64
_MAX_KEY_BYTES = 2**16
_WANTED = "expected a PEM file of an Ed25519 public key, like openssl pkey -in key.pem -pubout makes one"


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
            with open(name, "rb") as file:
                pem = file.read(_MAX_KEY_BYTES)
        except TypeError as error:
            raise InputError(f"public_key must be a path, or PEM in bytes, got {type(public_key).__name__}") from error
        except (OSError, ValueError) as error:
            raise InputError(f"public_key cannot be read: {error}; {_WANTED}") from error
    _parse(name, pem)
    return pem


def check_signature(folder: str, manifest: bytes, public_key: bytes) -> None:
    """Refuse a bundle whose manifest was not signed with the private key that belongs to `public_key`.

    Args:
        folder: The bundle's folder, with the signature in it.
        manifest: The manifest as it lies there, not yet decoded.
        public_key: PEM, as `read_public_key` returns it.

    Raises:
        SignatureError: The bundle is not signed, was altered after that, or was signed with another key.
    """
    from cryptography.exceptions import InvalidSignature

    path = os.path.join(folder, SIGNATURE_FILE)
    if not os.path.lexists(path):
        raise SignatureError(
            f"{folder} is not signed: it has no {SIGNATURE_FILE}; take it from whoever signs it, or, if it may come "
            "from anyone, load it without public_key"
        )
    try:
        signature = read_regular_file(path, _SIGNATURE_BYTES)
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
            f"{os.path.join(folder, MANIFEST_FILE)} was altered after it was signed, or signed with another key than "
            "the one that was given; do not use this bundle, take it again from where it was signed"
        ) from error


def _parse(name: str, pem: bytes) -> Ed25519PublicKey:
    """Return the key in a PEM file; `name` is what messages call it."""
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
