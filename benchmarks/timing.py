"""Calls that take turns, so that what else the machine does falls on all of them; and the same numbers first."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

import click
import numpy as np
from numpy.typing import NDArray

_CALM_S = 0.25  # threads of the one before wait for work in a loop: ONNX Runtime's for 50 ms, OpenMP's up to 200 ms
_MAX_CALLS = 2000

Call = Callable[[], object]


def check_equal(name: str, got: NDArray[np.float32], expected: NDArray[np.float32], tolerance: float) -> None:
    """Refuse a peer that computes something else.

    Raises:
        ClickException: Shape or numbers are not those expected.
    """
    if got.shape != expected.shape:
        raise click.ClickException(f"{name} gives shape {got.shape}, expected {expected.shape}")
    worst = float(np.abs(got - expected).max())
    if not worst <= tolerance:  # NaN is refused too
        raise click.ClickException(f"{name} gives other numbers: off by {worst:.2e}, and {tolerance:.0e} is allowed")


def rounds(names: Iterable[str], count: int) -> Iterator[list[str]]:
    """Yield all names `count` times, in another order each time, so that nobody always comes after the same one."""
    shuffled, every = random.Random(0), list(names)  # noqa: S311 - an order, no secret
    for _ in range(count):
        yield shuffled.sample(every, len(every))


def time_in_turn(calls: Mapping[str, Call], repeats: int, block_s: float) -> dict[str, list[float]]:
    """Return the seconds a call takes, `repeats` of each, by name.

    In each turn a way runs alone for about `block_s`, after a pause and one call that is not counted.
    """
    counts = {name: _calls_in(call, block_s) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for names in rounds(calls, repeats):
        for name in names:
            call = calls[name]
            time.sleep(_CALM_S)
            call()
            start = time.perf_counter()
            for _ in range(counts[name]):
                call()
            seconds[name].append((time.perf_counter() - start) / counts[name])
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the median of each."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def _calls_in(call: Call, block_s: float) -> int:
    for _ in range(3):
        call()
    start = time.perf_counter()
    call()
    return min(max(round(block_s / (time.perf_counter() - start)), 1), _MAX_CALLS)
