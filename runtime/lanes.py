"""Threads of a model that do parts of one call's work side by side."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue


class Lanes:
    """Up to `count` threads that share the parts of a call, the caller's own among them.

    The others start with the first call that has work for them, and wait for the next. Whoever calls does what nobody
    else has begun: a call waits for no part of another. Calls and `close` may come from a signal's handler in the midst
    of a call: no lock is held that they need and that is not re-entrant.

    Args:
        count: How many threads work at the same time on one call; at 1 the caller works alone.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._lock = threading.RLock()
        self._num_threads = 0
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()

    def share(self, work: Callable[[int], None], parts: Sequence[int]) -> None:
        """Call `work` with each part, in any order.

        An error ends the call, and is raised when no thread is at work on it any more; the caller's own, where there
        are several.

        Args:
            work: Takes a part.
            parts: What there is to do.
        """
        call = _Call(work, parts)
        try:
            self._ask(call, min(self.count, len(parts)) - 1)
            call.do_parts()
        finally:
            error = call.end()
        if error is not None:
            try:
                raise error
            finally:
                del error  # whose traceback has this frame: together they would live until the next collection

    def close(self) -> None:
        """End the threads, when they are through with what they have begun; later calls work alone."""
        self.count = 1
        for _ in range(self._num_threads):
            self._calls.put(None)

    def _ask(self, call: _Call, number: int) -> None:
        """Ask other threads to help, as many as there are or can be had."""
        with self._lock:
            while self._num_threads < number:
                self._num_threads += 1  # before it starts: who closes meanwhile ends it too
                try:
                    threading.Thread(target=self._help, name="edgevae", daemon=True).start()
                except RuntimeError:  # the interpreter ends, or the system has no more threads: fewer do it too
                    self._num_threads -= 1
                    break
        for _ in range(min(number, self._num_threads)):
            self._calls.put(call)

    def _help(self) -> None:
        # One that starts after the lanes were closed finds nothing that would end it, and must not wait for it.
        while self.count > 1 and (call := self._calls.get()) is not None:
            call.help()


class _Call:
    """The parts of a call that nobody has begun, and how many threads beside the caller are at work on others.

    The work is in the parts: of a call that has ended, nothing is kept by those who were asked to help and are late.
    """

    def __init__(self, work: Callable[[int], None], parts: Sequence[int]) -> None:
        self._left = deque((work, part) for part in parts)
        self._helpers = threading.Condition()
        self._num_helpers = 0
        self._error: BaseException | None = None

    def do_parts(self) -> None:
        """Do what nobody has begun, until all is begun."""
        while self._left:
            try:
                work, part = self._left.popleft()
            except IndexError:  # another thread was quicker
                return
            work(part)

    def help(self) -> None:
        """Do the same in another thread than the caller's; an error is the caller's to raise."""
        with self._helpers:
            self._num_helpers += 1
        error: BaseException | None = None
        try:
            self.do_parts()
        except BaseException as raised:  # noqa: BLE001 - of any kind: the caller raises it
            error = raised
        with self._helpers:
            if error is not None:
                self._error = error
                self._left.clear()
            self._num_helpers -= 1
            self._helpers.notify_all()
        del error

    def end(self) -> BaseException | None:
        """Let nobody begin a part any more, wait for those at work, and return what one of them raised."""
        with self._helpers:
            self._left.clear()
            while self._num_helpers:
                self._helpers.wait()
            error, self._error = self._error, None
        return error


ALONE = Lanes(1)
"""The caller's own thread, and no other."""
