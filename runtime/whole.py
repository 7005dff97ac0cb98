"""Files that are written whole or not at all, whatever ends the program: an error, a kill, the power."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give a name beside `path` to write to; at the end of the block it is flushed to the disk and renamed.

    Whoever is killed leaves that hidden name, `.<stem>.part<suffix>`, at most; the next who writes `path` takes it
    over. It is locked while it is written, so two processes never write it together. A link stays one, and what it
    leads to is written.

    Args:
        path: The file. What it held before stays until the block has ended without an error.

    Yields:
        The name to write to, with the same suffix. It is gone if the block raises.

    Raises:
        OSError: The file cannot be written, or another process is writing it.
    """
    target = Path(os.path.realpath(path))
    part = target.with_name(f".{target.stem}{_OWN}.part{target.suffix}")
    with contextlib.ExitStack() as stack:
        with writing(path):
            stack.enter_context(_alone(part))
        try:
            yield part
            with writing(path):
                with part.open("rb+") as file:
                    os.fsync(file.fileno())
                part.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
    _sync_folder(target.parent)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say of an error of the block that it is about writing `path`, why, and what to do."""
    try:
        yield
    except _UnwritableError:
        raise
    except OSError as error:
        raise _UnwritableError(path, error) from error


class _UnwritableError(OSError):
    """A file cannot be written."""

    def __init__(self, path: Path, error: OSError) -> None:
        reason, remedy = error.strerror or str(error), "make room there, or see to the folder's permissions"
        if not path.parent.is_dir():
            reason, remedy = f"the folder {path.parent} is not there any more", "make it again"
        elif isinstance(error, BlockingIOError):
            reason, remedy = "another process is writing it", "wait for it, or choose another name"
        super().__init__(f"{path} could not be written, and is as it was: {reason}; {remedy}")
        self.errno = error.errno or errno.EIO


if sys.platform == "win32":
    _OWN = f".{os.getpid()}"  # no locks: each process has a name of its own

    @contextlib.contextmanager
    def _alone(_path: Path) -> Iterator[None]:
        yield

    def _sync_folder(_path: Path) -> None:
        """Nothing to do: the system does not let a folder be flushed."""

else:
    import fcntl

    _OWN = ""

    @contextlib.contextmanager
    def _alone(path: Path) -> Iterator[None]:
        """Hold the lock of an empty file, which is made if it is not there; the system frees it if we are killed."""
        held = False
        while not held:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                _lock(descriptor)
                held = _is_at(descriptor, path)  # whoever held it before has perhaps renamed it
                if held:
                    os.ftruncate(descriptor, 0)
                    yield
            finally:
                os.close(descriptor)

    def _lock(descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            """Some file systems have no locks; there one must not write the same file twice at once."""

    def _is_at(descriptor: int, path: Path) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), path.stat())
        except FileNotFoundError:
            return False

    def _sync_folder(path: Path) -> None:
        with contextlib.suppress(OSError):  # some file systems cannot; the file itself is on the disk
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
