"""Threads of a model that do parts of one call's work side by side."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor


class Lanes:
    """Up to `count` threads that share the parts of a call, the caller's own among them.

    The others start with the first call that has work for them, and wait for the next. Whoever calls does what nobody
    else has begun: calls in many threads never wait for each other's parts.

    Args:
        count: How many threads work at the same time on one call; at 1 the caller works alone.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.lock = threading.RLock()  # a signal's handler may call, or close, in the thread that holds it
        self._pool: ThreadPoolExecutor | None = None

    def share(self, work: Callable[[int], None], parts: Sequence[int]) -> None:
        """Call `work` with each part, in any order; the first error ends it, and is raised when all threads are done.

        Args:
            work: Takes a part.
            parts: What there is to do.
        """
        waiting = deque(parts)

        def lane() -> None:
            try:
                while (part := _taken(waiting)) is not None:
                    work(part)
            finally:
                waiting.clear()  # after an error there is nothing left to do for the other lanes

        helpers = self._started(lane, min(self.count, len(parts)) - 1)
        try:
            lane()
        finally:
            errors = [helper.exception() for helper in helpers if not helper.cancel()]
        for error in errors:
            if error is not None:
                raise error

    def close(self) -> None:
        """End the threads; calls that are running, and later ones, work alone."""
        self.count = 1
        with self.lock:
            if self._pool is not None:
                self._pool.shutdown(wait=False)

    def _started(self, lane: Callable[[], None], number: int) -> list[Future[None]]:
        helpers: list[Future[None]] = []
        try:
            while len(helpers) < number and (pool := self._threads()) is not None:
                helpers.append(pool.submit(lane))
        except RuntimeError:  # the model was closed meanwhile, the interpreter ends, or the system has no more threads
            self.count = 1
        return helpers

    def _threads(self) -> ThreadPoolExecutor | None:
        with self.lock:
            if self._pool is None and self.count > 1:
                from concurrent.futures import ThreadPoolExecutor  # milliseconds of a start that most have no use for

                self._pool = ThreadPoolExecutor(self.count - 1, "edgevae")
            return self._pool


def _taken(waiting: deque[int]) -> int | None:
    try:
        return waiting.popleft()
    except IndexError:
        return None


ALONE = Lanes(1)
"""The caller's own thread, and no other."""
