"""Load test of the runtime: many threads, random calls, each answer checked, leaks counted.

    python -m tests.soak --seconds 600
    python -m tests.soak --openings 2000

Prints a JSON object: calls, wrong answers, errors, memory over time, open files and threads before and after. With
--openings, memory is measured while no model is open. Needs only the runtime, and Linux with glibc.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import gc
import hashlib
import itertools
import json
import os
import random
import statistics
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import get_native_id
from typing import Any, ClassVar

import click
import numpy as np
from numpy.typing import NDArray

import edgevae
from edgevae import Bundle, Model, Precision, Reference

# What this process holds, on Linux with glibc: memory, files, threads


_PROCESS = Path("/proc/self")
_SECONDS_TO_END = 60
_SECONDS_OF_CALM = 0.5
_COUNTS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class _Mallinfo(ctypes.Structure):
    """`struct mallinfo2` of glibc; `man mallinfo` says what each number is."""

    _fields_: ClassVar = [(name, ctypes.c_size_t) for name in _COUNTS]


def memory_bytes() -> tuple[int, int]:
    """Return the resident memory of the process, and how much of it is in use.

    glibc keeps the rest in its arenas for later allocations; MALLOC_ARENA_MAX limits the number of arenas.
    """
    pages = int((_PROCESS / "statm").read_text(encoding="ascii").split()[1])
    info = _libc().mallinfo2()
    return pages * os.sysconf("SC_PAGE_SIZE"), int(info.uordblks + info.hblkhd)


def left_open() -> dict[str, int]:
    """Return the numbers of open files and threads, once the threads of released models have ended."""
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
    """Give a thread pool; at the end wait until the system has ended its threads, shortly after Python joined them."""
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


# The load


REPOSITORY = Path(__file__).parent.parent
NUM_THREADS = 16
_CALLS = 60
"""Different calls for each model. A single thread computes their expected answers before the load begins."""
_MAX_ROWS = 600  # more than a graph runs at once with two threads
_MAX_ROWS_AT_ONCE = 512
_WARM_UP = 0.2  # of the whole
_SAMPLES = 200
_OPENINGS_A_ROUND = 20
_ROUNDS_TO_WARM_UP = 3

Arrays = tuple[NDArray[Any], ...]
Answer = Callable[[Model], Arrays]


def chooser_of(seed: int) -> random.Random:
    """Return a random generator."""
    return random.Random(seed)  # noqa: S311 - no secret is made of it


def methods(path: Path, model: Model, rng: random.Random) -> dict[str, Answer]:
    """Return calls of the methods with random rows and seeds, by name.

    Args:
        path: The bundle, whose reference has the rows.
        model: The bundle, loaded.
        rng: Chooses rows and seeds.
    """
    reference = Reference.of(Bundle(path)).arrays
    batch = int(_MAX_ROWS ** rng.random())
    rows = [rng.randrange(len(reference["x"])) for _ in range(batch)]
    x, z, seed = reference["x"][rows], reference["z"][rows], rng.randrange(2**64)
    if model.manifest.preprocessing is not None:
        x = model.manifest.preprocessing.raw(x)
    labels = reference["y"][rows] if "y" in reference else None
    label = None if labels is None else int(labels[0])

    def encode(used: Model) -> Arrays:
        q = used.encode(x, y=labels)
        upper = (part for level in q.upper for part in (level.z_loc, level.z_scale))
        return q.z_loc, q.z_scale, q.sample(seed=seed), *upper

    def reconstruct_into(used: Model) -> Arrays:
        out = np.empty((batch, int(np.prod(used.data_shape))), np.float32)
        return (used.reconstruct(x, seed=seed, out=out, y=labels),)

    def score(used: Model) -> Arrays:
        found = used.score(x, seed, 2, y=labels)
        return found.elbo, found.reconstruction, found.kl

    return {
        "encode": encode,
        "decode": lambda used: (used.decode(z, y=labels),),
        "reconstruct": lambda used: (used.reconstruct(x, seed=seed, y=labels),),
        "reconstruct out": reconstruct_into,
        "generate": lambda used: (used.generate(batch, seed, y=labels),),
        "elbo": lambda used: (used.elbo(x, seed, y=labels),),
        "log_likelihood": lambda used: (used.log_likelihood(x, seed, 3, y=labels),),
        "score": score,
        "posterior_predictive": lambda used: (used.posterior_predictive(x, 2, seed, y=labels),),
        "interpolate": lambda used: (used.interpolate(x[:1], x[-1:], 5, y=label),),
        "traverse": lambda used: (used.traverse(x[:1], 0, [-1.0, 0.0, 1.0], y=label),),
    }


@dataclasses.dataclass(frozen=True)
class Call:
    """A call with its expected answer: model and method in words, the call, and the digest of its answer."""

    place: str
    answer: Answer
    expected: bytes

    def is_right(self, model: Model) -> bool:
        """Return whether the answer is the expected one, bit for bit."""
        return digest(self.answer(model)) == self.expected


def digest(arrays: Arrays) -> bytes:
    """Return the SHA-256 of the arrays' bits, shapes and dtypes."""
    content = hashlib.sha256()
    for array in arrays:
        content.update(f"{array.dtype} {array.shape}".encode())
        content.update(array.tobytes())
    return content.digest()


def plan(path: Path, model: Model, rng: random.Random) -> list[Call]:
    """Return calls of a model with their answers."""
    calls = []
    for _ in range(_CALLS):
        name, answer = rng.choice(list(methods(path, model, rng).items()))
        calls.append(Call(f"{path.name} {model.precision} {name}", answer, digest(answer(model))))
    return calls


class Load:
    """The results that all threads add to: number of calls, wrong answers, errors, and memory over time."""

    def __init__(self) -> None:
        self.calls = 0
        self.wrong: list[str] = []
        self.errors: list[str] = []
        self.memory: list[tuple[int, int]] = []
        self._lock = threading.Lock()

    def check(self, call: Call, model: Model) -> None:
        """Make a call and record the result."""
        wrong, error = [], []
        try:
            if not call.is_right(model):
                wrong = [call.place]
        except Exception:  # noqa: BLE001 - any error is a finding
            error = [f"{call.place}: {traceback.format_exc()}"]
        with self._lock:
            self.calls += 1
            self.wrong += wrong
            self.errors += error

    def report(self) -> dict[str, Any]:
        """Return the results; memory after the warm-up and at the end is the median of a tenth of the run."""
        tenth, step = max(1, len(self.memory) // 10), max(1, len(self.memory) // 40)
        start = int(len(self.memory) * _WARM_UP)
        found: dict[str, Any] = {"calls": self.calls, "wrong": self.wrong[:5], "errors": self.errors[:5]}
        for kind, values in zip(("held", "in_use"), zip(*self.memory, strict=True), strict=True):
            warm, end = statistics.median(values[start : start + tenth]), statistics.median(values[-tenth:])
            found |= {f"{kind}_warm_bytes": int(warm), f"{kind}_end_bytes": int(end), f"{kind}_growth": end / warm - 1}
            found |= {f"{kind}_curve_mb": [value // 10**6 for value in values[::step]]}
        return found


def opened(path: Path, precision: Precision = "fp32") -> Model:
    """Return a model on the CPU with two threads."""
    return edgevae.load(path, provider="cpu", threads=2, precision=precision)


def precisions(paths: tuple[Path, ...]) -> Iterator[tuple[Path, Precision]]:
    """Yield each bundle with each of its precisions."""
    for path in paths:
        with opened(path) as model:
            there: tuple[Precision, ...] = ("fp32", *model.manifest.precisions)
        yield from ((path, precision) for precision in there)


def warm_up(models: list[Model]) -> None:
    """Run the largest batches of each graph in all threads at once: no later call needs more memory."""
    together = threading.Barrier(NUM_THREADS)

    def work(_thread: int) -> None:
        for model in models:
            for size in (_MAX_ROWS_AT_ONCE, _MAX_ROWS):
                together.wait()
                model.warm_up([size])

    with pool_of(NUM_THREADS) as pool:
        list(pool.map(work, range(NUM_THREADS)))


def soak(paths: tuple[Path, ...], seconds: float) -> dict[str, Any]:
    """Call models that all threads share, for `seconds`."""
    rng = chooser_of(0)
    models = [(path, opened(path, precision)) for path, precision in precisions(paths)]
    calls = [(call, model) for path, model in models for call in plan(path, model, rng)]
    warm_up([model for _, model in models])
    before, load, until = left_open(), Load(), time.monotonic() + seconds

    def work(seed: int) -> None:
        chooser = chooser_of(seed)
        while time.monotonic() < until:
            call, model = chooser.choice(calls)
            load.check(call, model)

    with pool_of(NUM_THREADS) as pool:
        running = [pool.submit(work, seed) for seed in range(NUM_THREADS)]
        while not all(future.done() for future in running):
            time.sleep(seconds / _SAMPLES)
            load.memory.append(memory_bytes())
    return load.report() | {"models": len(models), "before": before, "after": left_open()}


def reopen(paths: tuple[Path, ...], openings: int) -> dict[str, Any]:
    """Open a model, call it once, and close or just release it, again and again."""
    rng = chooser_of(0)
    plans = []
    for path, precision in precisions(paths):
        with opened(path, precision) as model:
            plans.append((path, precision, plan(path, model, rng)))
    choosers = [chooser_of(seed) for seed in range(NUM_THREADS)]
    load, together = Load(), threading.Barrier(NUM_THREADS)

    def open_all(_thread: int) -> None:
        for path, precision, _calls in plans:
            together.wait()
            with opened(path, precision) as model:
                model.warm_up([_MAX_ROWS_AT_ONCE, _MAX_ROWS])

    def work(chooser: random.Random) -> None:
        path, precision, calls = chooser.choice(plans)
        model = opened(path, precision)
        load.check(chooser.choice(calls), model)
        if chooser.random() < 0.5:
            model.close()

    with pool_of(NUM_THREADS) as pool:
        for _ in range(_ROUNDS_TO_WARM_UP):
            list(pool.map(open_all, range(NUM_THREADS)))
        before = left_open()
        turns = itertools.islice(itertools.cycle(choosers), openings)
        while chosen := list(itertools.islice(turns, _OPENINGS_A_ROUND)):
            list(pool.map(work, chosen))
            load.memory.append(memory_bytes())
        after = left_open()
    return load.report() | {"models": len(plans), "before": before, "after": after}


@click.command()
@click.argument("paths", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--seconds", default=60.0, show_default=True, help="How long to call.")
@click.option("--openings", type=int, help="Open and close models so many times instead.")
def main(paths: tuple[Path, ...], seconds: float, openings: int | None) -> None:
    """Run bundles, by default those in models/, under load."""
    chosen = paths or tuple(sorted((REPOSITORY / "models").iterdir()))
    click.echo(json.dumps(soak(chosen, seconds) if openings is None else reopen(chosen, openings)))


if __name__ == "__main__":
    main()
