"""Threads that share the parts of a call."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from runtime._lanes import ALONE, Lanes

SECONDS = 30


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    made = Lanes(3)
    yield made
    made.close()


def meet(together: threading.Barrier, _part: int) -> None:
    together.wait(SECONDS)


def helpers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("edgevae")}


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
        together = threading.Barrier(3)
        lanes.share(functools.partial(meet, together), range(3))
    assert len(helpers() - before) == 2


def test_one_lane_is_the_callers_thread() -> None:
    threads, before = [], helpers()
    ALONE.share(lambda _part: threads.append(threading.current_thread()), range(5))
    assert threads == [threading.current_thread()] * 5
    assert helpers() == before


def test_a_call_does_not_wait_for_threads_that_are_busy_with_another() -> None:
    lanes, began, ended = Lanes(2), threading.Barrier(3), threading.Event()

    def busy(_part: int) -> None:
        began.wait(SECONDS)
        ended.wait(SECONDS)

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(lanes.share, busy, range(2))
        began.wait(SECONDS)
        done: list[int] = []
        lanes.share(done.append, range(4))
        assert done == [0, 1, 2, 3]
        assert not other.done()
        ended.set()
    lanes.close()


@pytest.mark.parametrize("who", ["caller", "helper"])
def test_an_error_ends_all_lanes_and_is_raised_when_none_is_at_work(lanes: Lanes, who: str) -> None:
    caller, together = threading.current_thread(), threading.Barrier(3)
    done: list[int] = []

    def work(part: int) -> None:
        if part < 3:
            together.wait(SECONDS)
            if (threading.current_thread() is caller) == (who == "caller"):
                raise ValueError(f"wrong in {who}")
        done.append(part)

    with pytest.raises(ValueError, match=f"wrong in {who}"):
        lanes.share(work, range(1_000_000))
    left = len(done)
    assert left < 500_000
    lanes.share(lambda _part: None, range(3))
    assert len(done) == left


def test_closed_lanes_end_their_threads_and_leave_the_caller_alone(lanes: Lanes) -> None:
    before = helpers()
    together = threading.Barrier(3)
    lanes.share(functools.partial(meet, together), range(3))
    started = helpers() - before
    lanes.close()
    for thread in started:
        thread.join(SECONDS)
        assert not thread.is_alive()
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
    done = []

    def work(part: int) -> None:
        lanes.close()
        done.append(part)

    lanes.share(work, range(50))
    assert sorted(done) == list(range(50))


def test_where_the_system_has_no_more_threads_the_caller_works_alone(
    lanes: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    done: list[int] = []
    monkeypatch.setattr(threading.Thread, "start", refused)
    for _ in range(2):
        lanes.share(done.append, range(3))
    assert done == [0, 1, 2, 0, 1, 2]
