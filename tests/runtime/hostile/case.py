"""One hostile bundle: what is done to a good one, and what the refusal must say."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from edgevae import MANIFEST_FILE

Change = Callable[["Folder"], object]

OUTSIDE = "outside"
"""A folder beside each bundle, with a copy of the good one: what a bundle must not reach."""
REFERENCE = "reference.npz"


@dataclasses.dataclass(frozen=True)
class Case:
    """A hostile bundle.

    Args:
        name: What it is, as a folder can be called.
        change: Makes it of a good one.
        says: Regular expression that the error's message must match.
    """

    name: str
    change: Change
    says: str

    def build(self, good: Path, into: Path) -> Path:
        """Write the bundle into a folder of its own, and return its path."""
        path = into / self.name
        path.mkdir()
        for file in good.iterdir():
            os.link(file, path / file.name)
        folder = Folder(path, good)
        self.change(folder)
        folder.save()
        return path


class Folder:
    """A bundle that is being changed; the SHA-256 of what is written into it come right by themselves.

    Args:
        path: Its folder, full of links to the files of a good bundle.
        good: The good bundle.
    """

    def __init__(self, path: Path, good: Path) -> None:
        self.path, self.good = path, good
        self.outside = path.parent / OUTSIDE
        self.manifest: Any = json.loads((good / MANIFEST_FILE).read_bytes())
        self._original = json.dumps(self.manifest)

    def content(self, file: str) -> bytes:
        """Return the content of a file of the good bundle."""
        return (self.good / file).read_bytes()

    def put(self, file: str, content: bytes) -> None:
        """Replace a file, and say nothing of it in the manifest."""
        (self.path / file).unlink(missing_ok=True)
        (self.path / file).write_bytes(content)

    def entry(self, file: str) -> Any:
        """Return what the manifest says of a file."""
        if file == REFERENCE:
            return self.manifest["reference"]
        return self.manifest["graphs"][file.removesuffix(".onnx")]["file"]

    def replace(self, file: str, content: bytes) -> None:
        """Replace a file, and make what the manifest says of it right."""
        self.put(file, content)
        self.entry(file).update(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))

    def sparse(self, file: str, size_bytes: int) -> None:
        """Make a file as long as this, without writing it."""
        self.put(file, self.content(file))
        os.truncate(self.path / file, size_bytes)

    def save(self) -> None:
        """Write the manifest, if it was changed."""
        if json.dumps(self.manifest) != self._original:
            self.put(MANIFEST_FILE, json.dumps(self.manifest, indent=2).encode())


def graph(name: str, change: Callable[[onnx.ModelProto], object], says: str, file: str = "reconstruct.onnx") -> Case:
    """Return the case of a changed graph whose SHA-256 is right."""

    def apply(folder: Folder) -> None:
        model = onnx.load_from_string(folder.content(file))
        change(model)
        folder.replace(file, model.SerializeToString())

    return Case(name, apply, says)


def manifest(name: str, change: Callable[[Any], object], says: str) -> Case:
    """Return the case of a changed manifest."""
    return Case(name, lambda folder: change(folder.manifest), says)
