"""Files: written completely or not at all, and read without following links out of a bundle.

A file or folder is written next to its place under a hidden name, flushed to the disk, and renamed. An error, a kill or
a power failure leaves the old content in place, and at most the hidden name, which the next writer of the same path
takes over. The hidden name is locked while it is written (on Windows it has the process id in it instead), so that two
processes never write the same thing together.

OSError
└── WriteError    a file could not be written; the message says why and what to do
    └── BusyError another process is writing the same path
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import BundleError

if sys.platform != "win32":
    import fcntl

# Where the system has them: do not follow a link, do not wait for the other end of a pipe, keep newlines.
_READ_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_NOCTTY", "O_BINARY"))
_CHUNK_BYTES = 2**16


class WriteError(OSError):
    """A file could not be written.

    Args:
        path: The file.
        error: What the system said.

    Attributes:
        reason: Why, without the file's name and the remedy.
    """

    def __init__(self, path: Path, error: OSError) -> None:
        reason, remedy = error.strerror or str(error), "make room there, or see to the folder's permissions"
        if not path.parent.is_dir():
            reason, remedy = f"the folder {path.parent} is not there any more", "make it again"
        elif isinstance(error, BlockingIOError):
            reason, remedy = "another process is writing it", "wait for it, or choose another name"
        super().__init__(f"{path} could not be written, and is as it was: {reason}; {remedy}")
        self.errno = error.errno or errno.EIO
        self.reason = reason


class BusyError(WriteError):
    """Another process is writing the same path at this moment."""


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` of the block into a `WriteError` about `path`."""
    try:
        yield
    except WriteError:
        raise
    except BlockingIOError as error:
        raise BusyError(path, error) from error
    except OSError as error:
        raise WriteError(path, error) from error


@contextlib.contextmanager
def replace_file(path: Path, *, wait: bool = False) -> Iterator[Path]:
    """Give a temporary name to write to, which replaces `path` at the end of the block.

    Args:
        path: The file. What it held before stays until the block has ended without an error. A link stays a link, and
            the file that it leads to is replaced.
        wait: Whether to wait while another process is writing the same file; otherwise that is an error.

    Yields:
        The name to write to, `.<stem>.part<suffix>` in the same folder. It is gone if the block raises.

    Raises:
        WriteError: The file cannot be written.
        BusyError: Another process is writing it.
    """
    target = Path(os.path.realpath(path))
    part = _hidden(target)
    with contextlib.ExitStack() as stack:
        with write_errors(path):
            stack.enter_context(_locked(part, wait=wait))
        try:
            with write_errors(path):
                part.write_bytes(b"")  # drops what a killed process left
            yield part
            with write_errors(path):
                _flush_file(part)
                part.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
    _flush_folder(target.parent)


def write_file(path: Path, content: bytes) -> None:
    """Write `content` to a file, completely or not at all; wait while another process does the same.

    Raises:
        WriteError: The file cannot be written, and is as it was.
    """
    with replace_file(path, wait=True) as part, write_errors(path):
        part.write_bytes(content)


@contextlib.contextmanager
def replace_folder(out: Path, *, replace: bool) -> Iterator[Path]:
    """Give an empty temporary folder to write to, which takes the place of `out` at the end of the block.

    Systems cannot replace a folder in one step, so an old one is renamed to `.<name>.old` first, and removed at the
    end. A process killed between the two renames leaves only that; the next `replace_folder` renames it back.

    Args:
        out: The folder; its parent must exist. Neither a link nor the root of a file system.
        replace: Whether `out` may exist with something in it.

    Yields:
        The folder to write to, `.<name>.part` beside `out`. It is gone if the block raises.

    Raises:
        BusyError: Another process is writing `out`.
        OSError: It could not be written; what was there before stays.
    """
    new, old = _hidden(out, folder=True), out.with_name(f".{out.name}.old")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_locked(new, folder=True))
        except BlockingIOError as error:
            raise BusyError(out, error) from error
        try:
            _empty(new)
            if old.exists():  # left by a process that was killed while it replaced `out`
                _remove(old) if out.exists() else old.rename(out)
            yield new
            for path in new.rglob("*"):
                _flush_folder(path) if path.is_dir() else _flush_file(path)
            _flush_folder(new)
            if out.exists():
                shutil.copymode(out, new)
            if replace and out.exists():
                _exchange(new, out, old)
            else:
                new.rename(out)
        except BaseException:
            _remove(new)
            raise
    _flush_folder(out.parent)


def _exchange(new: Path, out: Path, old: Path) -> None:
    """Put `new` in the place of `out`, which is renamed to `old` and then removed."""
    with _locked(out, folder=True, wait=True):  # one that replaced it before us may not have removed `old` yet
        _remove(old)
        out.rename(old)
        try:
            new.rename(out)
        except BaseException as error:
            try:
                old.rename(out)
            except OSError as other:
                why = f"{other.strerror or other}; what was there before is {old} now, rename it back"
                raise OSError(other.errno or errno.EIO, why, str(out)) from error
            raise
        _flush_folder(out.parent)
        _remove(old)


def read_regular_file(path: str, max_bytes: int) -> bytes:
    """Return the content of a regular file; links, pipes and devices are refused.

    Args:
        path: The file.
        max_bytes: Largest size of the file.

    Raises:
        BundleError: It cannot be read, is no regular file, or is larger.
    """
    with _open_regular_file(path, max_bytes) as (file, size_bytes):
        return file.read(size_bytes + 1)


def regular_file_chunks(path: str, max_bytes: int) -> Iterator[bytes]:
    """Yield the same content in chunks, for a file that need not be in memory as a whole."""
    with _open_regular_file(path, max_bytes) as (file, size_bytes):
        left = size_bytes + 1
        while left > 0 and (chunk := file.read(min(left, _CHUNK_BYTES))):
            left -= len(chunk)
            yield chunk


@contextlib.contextmanager
def _open_regular_file(path: str, max_bytes: int) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file; yield it and its size in bytes."""
    try:
        if Path(path).is_symlink():
            raise BundleError(f"{path} is a link, and nothing outside of a bundle is read; copy it with cp -rL")
        descriptor = os.open(path, _READ_FLAGS)
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


def _hidden(path: Path, *, folder: bool = False) -> Path:
    """Return the temporary name of `path`; a file keeps its suffix, by which writers choose the format."""
    stem, suffix = (path.name, "") if folder else (path.stem, path.suffix)
    own = f".{os.getpid()}" if sys.platform == "win32" else ""  # no locks there
    return path.with_name(f".{stem}{own}.part{suffix}")


@contextlib.contextmanager
def _locked(path: Path, *, folder: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a file or folder, which is made if needed; the system frees it if the process is killed.

    Raises:
        BlockingIOError: Another process holds it, and `wait` is false.
    """
    if sys.platform == "win32":
        if folder:
            path.mkdir(exist_ok=True)
        yield
        return
    flags = os.O_DIRECTORY if folder else os.O_RDWR | os.O_CREAT
    while True:
        if folder:
            path.mkdir(exist_ok=True)
        descriptor = os.open(path, flags | os.O_NOFOLLOW, 0o666)
        try:
            _lock(descriptor, wait=wait)
            if _is_same(descriptor, path):  # the former holder may have renamed it
                yield
                return
        finally:
            os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> None:
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:
        """Some file systems have no locks; there two processes must not write the same path at once."""


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _empty(folder: Path) -> None:
    """Remove what a killed process left in a folder."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _remove(folder: Path) -> None:
    """Remove a folder, as far as possible."""
    with contextlib.suppress(OSError):
        folder.chmod(0o700)  # for a bundle that was made read-only
    shutil.rmtree(folder, ignore_errors=True)


def _flush_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    """Flush the names in a folder to the disk, where the system can."""
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
