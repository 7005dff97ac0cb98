"""What this process holds, on Linux with glibc: memory, files, threads."""

from __future__ import annotations

import ctypes
import functools
import gc
import os
from pathlib import Path
from typing import ClassVar

_PROCESS = Path("/proc/self")
_COUNTS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class _Mallinfo(ctypes.Structure):
    """`struct mallinfo2` of glibc; `man mallinfo` says what each number is."""

    _fields_: ClassVar = [(name, ctypes.c_size_t) for name in _COUNTS]


def memory_bytes() -> tuple[int, int]:
    """Return how much memory the process holds, and how much of it is in use.

    The rest is free and kept for the next allocation: glibc keeps some in each of its arenas, of which it has up to
    eight a processor; the environment variable MALLOC_ARENA_MAX says how many it may have.
    """
    pages = int((_PROCESS / "statm").read_text(encoding="ascii").split()[1])
    info = _libc().mallinfo2()
    return pages * os.sysconf("SC_PAGE_SIZE"), int(info.uordblks + info.hblkhd)


def left_open() -> dict[str, int]:
    """Return how many files and threads the process has."""
    gc.collect()
    return {name: len(list((_PROCESS / folder).iterdir())) for name, folder in (("files", "fd"), ("threads", "task"))}


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = _Mallinfo
    return libc
