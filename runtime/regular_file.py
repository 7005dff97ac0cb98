"""Files of a bundle, opened so that nothing else than a file in its folder is ever read."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

from .errors import BundleError

# Where the system has them: do not follow a link, do not wait for the other end of a pipe, do not translate line ends.
_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY", "O_BINARY"))
_PIECE_BYTES = 2**16  # what is freed and taken again without asking the system for memory


def read_regular_file(path: str, max_bytes: int) -> bytes:
    """Return the content of a regular file, and never that of a link, a pipe or a device.

    Args:
        path: The file.
        max_bytes: How long it may be; what is longer is not read.

    Raises:
        BundleError: It cannot be read, is no regular file, or is longer; the message says what to do.
    """
    with _opened(path, max_bytes) as (file, size_bytes):
        return file.read(size_bytes + 1)


def pieces_of_regular_file(path: str, max_bytes: int) -> Iterator[bytes]:
    """Yield the content likewise, a little at a time: it needs no memory, and so less time."""
    with _opened(path, max_bytes) as (file, size_bytes):
        left = size_bytes + 1
        while left > 0 and (piece := file.read(min(left, _PIECE_BYTES))):
            left -= len(piece)
            yield piece


@contextlib.contextmanager
def _opened(path: str, max_bytes: int) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file; give its length too."""
    try:
        if os.path.islink(path):
            raise BundleError(f"{path} is a link, and nothing outside of a bundle is read; copy it with cp -rL")
        descriptor = os.open(path, _FLAGS)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise BundleError(f"{path} is not a regular file; copy the whole bundle again")
            if status.st_size > max_bytes:
                raise BundleError(
                    f"{path} was changed after export: it has {status.st_size} bytes, expected at most {max_bytes}; "
                    "copy the whole bundle again"
                )
            with open(descriptor, "rb", closefd=False) as file:
                yield file, status.st_size
        finally:
            os.close(descriptor)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error}; copy the whole bundle again") from error
