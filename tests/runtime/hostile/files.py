"""Files that are cut off, changed, swapped, missing, too large, or something else than files."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

from edgevae import MANIFEST_FILE
from tests.runtime.hostile.case import REFERENCE, Case, Folder

NAMES = ("encoder", "decoder", "reconstruct", "elbo", "observation")
ONNX = tuple(f"{name}.onnx" for name in NAMES)
ALL = (*ONNX, REFERENCE, MANIFEST_FILE)

CHANGED, NO_MANIFEST = "was changed after export", "is not a valid manifest"
NOT_READ = "is a link, and nothing outside of a bundle is read"


def _cut(file: str, numerator: int, *, right: bool = False) -> Case:
    def change(folder: Folder) -> None:
        content = folder.content(file)
        length = len(content) * numerator // 8 if numerator < 8 else len(content) - 1 - (file == MANIFEST_FILE)
        (folder.replace if right else folder.put)(file, content[:length])

    says = NO_MANIFEST if file == MANIFEST_FILE else CHANGED
    if right:
        says = "reference.npz is damaged" if file == REFERENCE else f"{file}: "
    return Case(f"cut-{numerator}-of-8-{file}{'-sha256-right' * right}", change, says)


def _flip(file: str, numerator: int) -> Case:
    def change(folder: Folder) -> None:
        content = bytearray(folder.content(file))
        content[len(content) * numerator // 8] ^= 1 << numerator % 8
        folder.put(file, bytes(content))

    return Case(f"bit-flipped-at-{numerator}-of-8-{file}", change, CHANGED)


def _swap(first: str, second: str, *, right: bool) -> Case:
    def change(folder: Folder) -> None:
        for file, other in ((first, second), (second, first)):
            (folder.replace if right else folder.put)(file, folder.content(other))

    says = "does not fit its manifest" if right else CHANGED
    return Case(f"swapped-{first}-{second}{'-sha256-right' * right}", change, says)


def _instead(name: str, file: str, make: Callable[[Folder, Path], object], says: str) -> Case:
    def change(folder: Folder) -> None:
        (folder.path / file).unlink()
        make(folder, folder.path / file)

    return Case(f"{name}-{file}", change, says)


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the address of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def _claims(file: str, size_bytes: int, says: str) -> Case:
    """A huge file of which the manifest says that it is that huge."""

    def change(folder: Folder) -> None:
        folder.sparse(file, size_bytes)
        folder.entry(file)["size_bytes"] = size_bytes

    return Case(f"huge-as-the-manifest-says-{file}", change, says)


def _huge(file: str) -> Case:
    return Case(f"huge-{file}", lambda folder: folder.sparse(file, 2**35), CHANGED)


def _links() -> Iterator[Case]:
    for file in ALL:
        yield _instead("link-out", file, lambda folder, path: path.symlink_to(folder.outside / path.name), NOT_READ)
        yield _instead("link-up", file, lambda _, path: path.symlink_to(f"../outside/{path.name}"), NOT_READ)
    yield _instead("link-to-itself", "reconstruct.onnx", lambda _, path: path.symlink_to(path.name), NOT_READ)
    for file in (MANIFEST_FILE, "reconstruct.onnx", REFERENCE):
        yield _instead("link-to-zeros", file, lambda _, path: path.symlink_to("/dev/zero"), NOT_READ)
        yield _instead("link-to-nothing", file, lambda _, path: path.symlink_to("nothing"), NOT_READ)


def _kinds() -> Iterator[Case]:
    for file in (MANIFEST_FILE, "reconstruct.onnx", "elbo.onnx", REFERENCE):
        yield _instead("pipe", file, lambda _, path: os.mkfifo(path), "is not a regular file")
        yield _instead("folder", file, lambda _, path: path.mkdir(), "is not a regular file")
        yield _instead("socket", file, lambda _, path: _socket(path), "cannot be read")


FILES: tuple[Case, ...] = (
    *(_cut(file, numerator) for file in ALL for numerator in (0, 2, 4, 6, 8)),
    *(_cut(file, numerator, right=True) for file in (*ONNX, REFERENCE) for numerator in (0, 3, 7, 8)),
    *(_flip(file, numerator) for file in (*ONNX, REFERENCE) for numerator in (0, 3, 5, 7)),
    *(_instead("missing", file, lambda _, __: None, "cannot be read|is not a bundle") for file in ALL),
    *(_swap(first, second, right=right) for first, second in combinations(ONNX, 2) for right in (True, False)),
    *_links(),
    *_kinds(),
    *(_huge(file) for file in ALL),
    _claims("reconstruct.onnx", 2**35, NO_MANIFEST),
    _claims(REFERENCE, 2**30, "reference.npz is damaged: it has 1073741824 bytes"),
)
