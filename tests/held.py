"""What this process holds, on Linux with glibc: memory, files, threads."""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import get_native_id
from typing import ClassVar

_PROCESS = Path("/proc/self")
_SECONDS_TO_END = 60
_SECONDS_OF_CALM = 0.5
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
    """Return how many files and threads the process has, once no thread has ended for a while.

    Those of a model that was let go end by themselves.
    """
    gc.collect()
    num_threads, calm_since = _count("task"), time.monotonic()
    until = calm_since + _SECONDS_TO_END
    while time.monotonic() < min(calm_since + _SECONDS_OF_CALM, until):
        time.sleep(0.01)
        if (now := _count("task")) < num_threads:
            calm_since = time.monotonic()
        num_threads = now
    return {"files": _count("fd"), "threads": num_threads}


def _count(what: str) -> int:
    return len(list((_PROCESS / what).iterdir()))


@contextmanager
def pool_of(num_threads: int) -> Iterator[ThreadPoolExecutor]:
    """Give a pool of threads that the process doesn't have any more afterwards.

    Python has joined a thread when it is through with it, which is a moment before the system is.
    """
    started: list[int] = []
    with ThreadPoolExecutor(num_threads, initializer=lambda: started.append(get_native_id())) as pool:
        yield pool
    until = time.monotonic() + _SECONDS_TO_END
    while left := [thread for thread in started if (_PROCESS / "task" / str(thread)).exists()]:
        if time.monotonic() > until:
            raise TimeoutError(f"{len(left)} threads of the pool have not ended after {_SECONDS_TO_END} s")
        time.sleep(0.01)


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = _Mallinfo
    return libc
