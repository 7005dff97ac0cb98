"""Threads that share the parts of a call."""

from __future__ import annotations

import functools
import gc
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from edgevae.lanes import ALONE, Lanes

SECONDS = 30
PART_SECONDS = 0.01


class Held:
    """What a call holds on to."""


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    made = Lanes(3)
    yield made
    made.close()


def meet(together: threading.Barrier, _part: int) -> None:
    together.wait(SECONDS)


def helpers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "edgevae"}


def end(threads: set[threading.Thread]) -> None:
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()


@pytest.mark.parametrize("number", [0, 1, 2, 100])
def test_each_part_is_done_once(lanes: Lanes, number: int) -> None:
    done: list[int] = []
    lanes.share(done.append, range(number))
    assert sorted(done) == list(range(number))


def test_parts_are_done_at_the_same_time_by_the_caller_and_others(lanes: Lanes) -> None:
    together, threads = threading.Barrier(3), set()

    def work(_part: int) -> None:
        threads.add(threading.current_thread())
        together.wait(SECONDS)

    lanes.share(work, range(3))
    assert threading.current_thread() in threads
    assert len(threads) == 3


def test_threads_wait_for_the_next_call(lanes: Lanes) -> None:
    before = helpers()
    for _ in range(20):
        lanes.share(functools.partial(meet, threading.Barrier(3)), range(3))
    assert len(helpers() - before) == 2


def test_one_lane_is_the_callers_thread() -> None:
    threads, before = [], helpers()
    ALONE.share(lambda _part: threads.append(threading.current_thread()), range(5))
    assert threads == [threading.current_thread()] * 5
    assert helpers() == before


def test_a_call_neither_waits_for_threads_that_are_busy_with_another_nor_leaves_them_anything() -> None:
    lanes, began, ended = Lanes(2), threading.Barrier(3), threading.Event()

    def busy(_part: int) -> None:
        began.wait(SECONDS)
        ended.wait(SECONDS)

    def call() -> weakref.ref[Held]:
        held, done = Held(), []
        lanes.share(lambda part: done.append((part, held)), range(4))
        assert [part for part, _ in done] == [0, 1, 2, 3]
        return weakref.ref(held)

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(lanes.share, busy, range(2))
        began.wait(SECONDS)
        assert call()() is None
        assert not other.done()
        ended.set()
    lanes.close()


@pytest.mark.parametrize("who", ["caller", "helper"])
def test_an_error_ends_all_lanes_and_is_raised_when_none_is_at_work(lanes: Lanes, who: str) -> None:
    caller, together = threading.current_thread(), threading.Barrier(3)
    raised, done = threading.Event(), []

    def work(part: int) -> None:
        if part < 3:
            together.wait(SECONDS)
            if (threading.current_thread() is caller) == (who == "caller"):
                raised.set()
                raise ValueError(f"wrong in {who}")
            raised.wait(SECONDS)
        time.sleep(0.2)
        done.append(part)

    with pytest.raises(ValueError, match=f"wrong in {who}"):
        lanes.share(work, range(100))
    left = len(done)
    assert 1 <= left < 20
    lanes.share(functools.partial(meet, threading.Barrier(3)), range(3))
    assert len(done) == left


@pytest.mark.parametrize("who", ["caller", "helper"])
def test_an_error_leaves_nothing_behind(lanes: Lanes, who: str) -> None:
    def call() -> weakref.ref[Held]:
        held, caller, together = Held(), threading.current_thread(), threading.Barrier(3)

        def work(_part: int, _held: Held = held) -> None:
            together.wait(SECONDS)
            if (threading.current_thread() is caller) == (who == "caller"):
                raise ValueError("wrong")

        with pytest.raises(ValueError, match="wrong") as found:
            lanes.share(work, range(3))
        del found
        return weakref.ref(held)

    gc.collect()
    gc.disable()
    try:
        held = call()
        lanes.share(functools.partial(meet, threading.Barrier(3)), range(3))
        assert held() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("when", ["starting", "working"])
def test_an_interrupt_ends_all_lanes(lanes: Lanes, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    start, done, before = threading.Thread.start, [], helpers()

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    def work(part: int) -> None:
        time.sleep(PART_SECONDS)
        if when == "working" and threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        done.append(part)

    if when == "starting":
        monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lanes.share(work, range(200))
    left = len(done)
    assert left < 100
    time.sleep(10 * PART_SECONDS)
    assert len(done) == left
    lanes.close()
    end(helpers() - before)


@pytest.mark.skipif(not hasattr(signal, "raise_signal") or not hasattr(signal, "SIGUSR1"), reason="needs signals")
@pytest.mark.parametrize("what", ["call", "close"])
def test_a_signals_handler_may_call_and_close_while_threads_are_started(
    lanes: Lanes, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    start, before = threading.Thread.start, helpers()
    handled: list[int] = []
    done: list[int] = []

    def handler(*_signal: Any) -> None:
        if what == "close":
            lanes.close()
        else:
            lanes.share(handled.append, range(3))

    def signalled(thread: threading.Thread) -> None:
        start(thread)
        monkeypatch.setattr(threading.Thread, "start", start)
        signal.raise_signal(signal.SIGUSR1)

    former = signal.signal(signal.SIGUSR1, handler)
    monkeypatch.setattr(threading.Thread, "start", signalled)
    try:
        lanes.share(done.append, range(50))
    finally:
        signal.signal(signal.SIGUSR1, former)
    assert sorted(done) == list(range(50))
    if what == "call":
        assert sorted(handled) == [0, 1, 2]
        lanes.close()
    end(helpers() - before)


def test_closed_lanes_end_their_threads_and_leave_the_caller_alone(lanes: Lanes) -> None:
    before = helpers()
    lanes.share(functools.partial(meet, threading.Barrier(3)), range(3))
    started = helpers() - before
    lanes.close()
    end(started)
    threads = []
    lanes.share(lambda _part: threads.append(threading.current_thread()), range(5))
    assert threads == [threading.current_thread()] * 5


def test_lanes_that_were_closed_before_any_work_start_no_threads(lanes: Lanes) -> None:
    before = helpers()
    done: list[int] = []
    lanes.close()
    lanes.share(done.append, range(5))
    assert done == [0, 1, 2, 3, 4]
    assert helpers() == before


def test_lanes_that_are_closed_in_the_midst_of_a_call_do_all_of_it(lanes: Lanes) -> None:
    done, before = [], helpers()

    def work(part: int) -> None:
        lanes.close()
        done.append(part)

    lanes.share(work, range(50))
    assert sorted(done) == list(range(50))
    end(helpers() - before)


def test_where_the_system_has_no_more_threads_the_caller_works_alone_until_it_has(
    lanes: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    done: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        for _ in range(2):
            lanes.share(done.append, range(3))
    assert done == [0, 1, 2, 0, 1, 2]
    lanes.share(functools.partial(meet, threading.Barrier(3)), range(3))
