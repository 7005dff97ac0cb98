"""Signing of bundles: Ed25519 over the bytes of the manifest, which holds the SHA-256 of every file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edgevae import MANIFEST_FILE, SIGNATURE_FILE, Bundle

from .errors import ExportError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_WANTED = (
    "expected a PEM file of an Ed25519 private key, like openssl genpkey -algorithm ed25519 -out key.pem makes one"
)


class SigningKey:
    """A private key that signs bundles. It is never written or shown.

    Args:
        path: PEM file of an Ed25519 private key, PKCS#8, encrypted or not.
        passphrase: Returns the passphrase; called only if the file is encrypted.

    Raises:
        ExportError: There is no such file, it holds another kind of key, its passphrase is wrong or missing, or the
            package `cryptography` is not installed.
    """

    def __init__(self, path: Path, passphrase: Callable[[], str] | None = None) -> None:
        try:
            pem = path.read_bytes()
        except OSError as error:
            raise ExportError(f"the signing key cannot be read: {error}; {_WANTED}") from error
        self._key = _parse(path, pem, passphrase)

    @property
    def public_key(self) -> bytes:
        """The public key, PEM, as `edgevae.load` takes it."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        return self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def sign_bundle(self, folder: Path) -> None:
        """Write the signature of a bundle's manifest and check it. The manifest must not change afterwards.

        Args:
            folder: The finished bundle.

        Raises:
            BundleError: The bundle cannot be read.
        """
        manifest = (folder / MANIFEST_FILE).read_bytes()
        (folder / SIGNATURE_FILE).write_bytes(self._key.sign(manifest))
        Bundle(folder, self.public_key)


def _parse(path: Path, pem: bytes, passphrase: Callable[[], str] | None) -> Ed25519PrivateKey:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError as error:
        raise ExportError(
            "signing needs the package cryptography, which is not installed; pip install 'edgevae[signing]'"
        ) from error
    if b"PUBLIC KEY-----" in pem:
        raise ExportError(f"{path} holds a public key, which checks signatures and makes none; {_WANTED}")
    password = None
    if b"BEGIN ENCRYPTED" in pem:
        if passphrase is None:
            raise ExportError(f"{path} is encrypted; give its passphrase")
        password = passphrase().encode()
    try:
        key = load_pem_private_key(pem, password)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if password is not None:
            raise ExportError(f"{path} cannot be decrypted: the passphrase is wrong, or the file damaged") from error
        raise ExportError(f"{path} holds no private key: {error}; {_WANTED}") from error
    if not isinstance(key, Ed25519PrivateKey):
        kind = type(key).__name__.lstrip("_").removesuffix("PrivateKey")
        raise ExportError(f"{path} holds a private key of another kind, {kind}; {_WANTED}")
    return key
