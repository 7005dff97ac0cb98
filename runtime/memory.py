"""Memory that the process holds and no longer uses."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable


def give_memory_back() -> None:
    """Let the system have the memory that this process has freed, where the C library would keep it.

    glibc keeps for each thread's next allocation what was freed before it, and a model frees more than it takes, while
    it is loaded and when it ends: opened and closed in 16 threads, models would hold four times the memory. Other C
    libraries need no telling.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    """Return `malloc_trim` of glibc; `None` where there is none."""
    if not sys.platform.startswith("linux"):
        return None
    import ctypes  # a millisecond of a start

    return getattr(ctypes.CDLL(None), "malloc_trim", None)
