"""Files and folders that are written whole or not at all, whatever ends the program: an error, a kill, the power.

They are written beside their place under a hidden name, `.<name>.part`, flushed to the disk, and renamed. Whoever is
killed leaves that one behind at most; it is no run and no bundle, and the next who writes the same takes it over. It
is locked while it is written, so two processes never write one thing together. The runtime imports nothing of ours and
has the same for its files, in `runtime/_whole.py`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

_NOT_HERE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
_AT_CWD, _EXCHANGE = -100, 2  # AT_FDCWD; RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS


class BusyError(OSError):
    """Another process is writing the same folder at this moment."""


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that, whatever happens, `path` holds either what it held before or all of `content`.

    Raises:
        OSError: It could not be written; nothing of it is left.
    """
    part = _hidden(path)
    with _alone(part):
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
    _sync_folder(path.parent)


@contextlib.contextmanager
def whole_folder(out: Path, *, replace: bool) -> Iterator[Path]:
    """Give an empty folder beside `out` to write to; at the end of the block it takes the place of `out`.

    A folder that is replaced is exchanged with the new one in one step where system and file system can: Linux and
    macOS, on their own file systems. Elsewhere it is renamed away first; who is killed between those two renames leaves
    it under a hidden name, from which the next one puts it back.

    Args:
        out: The folder; its parent must be there. Neither a link nor the root of a file system.
        replace: Whether it may be there, with something in it.

    Yields:
        The folder to write to. It is gone if the block raises.

    Raises:
        BusyError: Another process writes `out` at this moment.
        OSError: It could not be written; what was there before stays.
    """
    new, aside = _hidden(out), out.with_name(f".{out.name}.old")
    with _alone(new, folder=True):
        try:
            _empty(new)
            if aside.exists() and not out.exists():
                aside.rename(out)
            yield new
            for path in new.rglob("*"):
                _sync_folder(path) if path.is_dir() else _sync_file(path)
            _sync_folder(new)
            if out.exists():
                shutil.copymode(out, new)
            replaced = replace and out.exists()
            if not replaced:
                new.rename(out)
        except BaseException:
            _remove(new)
            raise
        if replaced:
            _replace(new, out, aside)
    _sync_folder(out.parent)


def _replace(new: Path, out: Path, aside: Path) -> None:
    """Put a folder in the place of another one, which goes."""
    with _alone(out, folder=True, wait=True):  # it gets the hidden name, and nobody may take it for a leftover yet
        try:
            if not _exchanged(new, out):
                _remove(aside)
                out.rename(aside)
                try:
                    new.rename(out)
                except BaseException:
                    aside.rename(out)
                    raise
                aside.rename(new)
        finally:
            _remove(new)


def _exchanged(first: Path, second: Path) -> bool:
    """Exchange two folders in one step; return `False` where that cannot be done."""
    if sys.platform not in {"linux", "darwin"}:
        return False
    import ctypes  # needed here only

    libc = ctypes.CDLL(None, use_errno=True)
    names = ctypes.c_char_p(os.fsencode(first)), ctypes.c_char_p(os.fsencode(second))
    if sys.platform == "darwin":
        rename = getattr(libc, "renamex_np", None)
        arguments = (*names, ctypes.c_uint(_EXCHANGE))
    else:
        rename = getattr(libc, "renameat2", None)
        arguments = (_AT_CWD, names[0], _AT_CWD, names[1], ctypes.c_uint(_EXCHANGE))
    if rename is None:
        return False
    if rename(*arguments) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NOT_HERE:
        return False
    raise OSError(number, os.strerror(number), str(second))


def _hidden(path: Path) -> Path:
    """Where `path` is written. Without locks, on Windows, each process has a name of its own."""
    own = f".{os.getpid()}" if sys.platform == "win32" else ""
    return path.with_name(f".{path.name}{own}.part")


@contextlib.contextmanager
def _alone(path: Path, *, folder: bool = False, wait: bool | None = None) -> Iterator[None]:
    """Hold the lock of a file or folder, which is made if it is not there; the system frees it if we are killed.

    Raises:
        BusyError: Another process holds it, and we are not to wait; by default one waits for files only.
    """
    if sys.platform == "win32":
        if folder:
            path.mkdir(exist_ok=True)
        yield
        return
    wait = not folder if wait is None else wait
    held = False
    while not held:
        if folder:
            path.mkdir(exist_ok=True)
        flags = os.O_DIRECTORY if folder else os.O_RDWR | os.O_CREAT
        descriptor = os.open(path, flags | os.O_NOFOLLOW, 0o666)
        try:
            _lock(descriptor, path, wait=wait)
            held = _is_at(descriptor, path)  # whoever held it before has perhaps renamed it
            if held:
                yield
        finally:
            os.close(descriptor)


if sys.platform != "win32":
    import fcntl

    def _lock(descriptor: int, path: Path, *, wait: bool) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise BusyError(error.errno, "another process is writing it; wait until it is done", str(path)) from error
        except OSError:
            """Some file systems have no locks; there one must not write the same thing twice at once."""


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _empty(folder: Path) -> None:
    """Remove what somebody who was killed left in a folder."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _remove(folder: Path) -> None:
    """Remove a folder, as far as that can be done."""
    with contextlib.suppress(OSError):
        folder.chmod(0o700)  # a bundle that was made read-only
    shutil.rmtree(folder, ignore_errors=True)


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Have the names in a folder on the disk, where a folder can be flushed."""
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
