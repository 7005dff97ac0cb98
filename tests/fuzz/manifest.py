"""`manifest.json`: any bytes are a manifest that reads back as itself, or a `BundleError`."""

from __future__ import annotations

import re
from pathlib import Path

from edgevae import BundleError, Manifest
from edgevae.manifest import check_signatures
from tests.fuzz.target import Target

MODELS = Path(__file__).parents[2] / "models"


def make(_work: Path) -> Target:
    return Target(check, seeds(), words())


def seeds() -> list[bytes]:
    return [path.read_bytes() for path in sorted(MODELS.glob("*/manifest.json"))]


def words() -> list[bytes]:
    found = sorted(set(re.findall(rb'"[^"]{1,40}"', b"".join(seeds()))))
    return [*found, b"null", b"true", b"NaN", b"1e999", b"[" * 2000, b'{"a":' * 2000]


def check(data: bytes) -> None:
    try:
        manifest = Manifest.decode(data)
        check_signatures(manifest)
    except BundleError:
        return
    assert Manifest.decode(manifest.encode()) == manifest
