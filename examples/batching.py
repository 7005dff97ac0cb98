"""Run what many callers ask for at the same time in one go: a model for asyncio.

    batcher = Batcher(edgevae.load("models/mnist-mlp"))
    loc_img = await batcher.reconstruct(x, seed=0)

A model takes far less time for ten rows in one run than for ten runs. While one run is on, whoever comes waits; the
next run takes all that wait. Nobody waits for a timer, and a caller that is alone is served at once.

The answers are those of direct calls, `model.reconstruct(x, y=y, seed=seed)` and `model.score(x, y=y, seed=seed)`,
whoever shares the run: each caller's noise is drawn from the caller's own seed, and handed to the model as `eps`.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

import edgevae

Arrays: TypeAlias = "list[NDArray[Any]]"

_PARTICLES = 10  # draws of z a row, as many as `Model.score` takes by itself


class ClosedError(RuntimeError):
    """The batcher was closed before the model came to this call."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Job:
    """What one caller wants.

    Args:
        run: What the model is to do with the rows and their noise; jobs that want the same can share a run.
        x: The rows, checked.
        y: Their labels, where the model sees labels.
        draw: Makes the noise for this many rows, for each level of the latent; the rows are the last axis but one.
        answer: Where the answer goes, a list of arrays with a row for each of `x`.
    """

    run: Callable[[NDArray[np.float32], NDArray[np.int64] | None, Arrays], Arrays]
    x: NDArray[np.float32]
    y: NDArray[np.int64] | None
    draw: Callable[[int], Arrays]
    answer: asyncio.Future[Arrays]


class Batcher:
    """Calls of one model, from one event loop, run together.

    Args:
        model: The model; it runs in a thread of its own, so that the event loop stays free.
        max_rows: Rows in a run that is shared; a caller who brings more has a run alone.
        together: Whether calls share runs. Without it each call is a run, which is there to be compared with.
    """

    def __init__(self, model: edgevae.Model, max_rows: int = 1024, *, together: bool = True) -> None:
        self.calls = self.runs = 0  # since the start
        self._model = model
        self._max_rows = max_rows if together else 0
        self._queue: list[_Job] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._worker: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def waiting(self) -> int:
        """Number of calls that wait for a run to begin."""
        return sum(not job.answer.done() for job in self._queue)

    async def reconstruct(
        self, x: ArrayLike, *, y: ArrayLike | None = None, seed: int | None = None
    ) -> NDArray[np.float32]:
        """Return `model.reconstruct(x, y=y, seed=seed)`.

        Raises:
            InputError: An argument does not fit; the other callers do not notice.
            ClosedError: The batcher was closed.
        """
        stream = None if seed is None else edgevae.Noise(seed)

        def draw(rows: int) -> Arrays:
            shape = (rows, self._model.z_dim)
            return [np.zeros(shape, np.float32) if stream is None else stream.standard_normal(shape)]

        (loc_img,) = await self._call(self._reconstruct, x, y, draw)
        return loc_img

    async def score(self, x: ArrayLike, *, y: ArrayLike | None = None, seed: int = 0) -> edgevae.Score:
        """Return `model.score(x, y=y, seed=seed)`.

        Raises:
            InputError: An argument does not fit; the other callers do not notice.
            ClosedError: The batcher was closed.
        """
        stream = edgevae.Noise(seed)

        def draw(rows: int) -> Arrays:
            # As the model itself draws: one particle after the other, and in each one level after the other.
            sizes = self._model.manifest.model.z_dims
            particles = [[stream.standard_normal((rows, size)) for size in sizes] for _ in range(_PARTICLES)]
            return [np.stack(level) for level in zip(*particles, strict=True)]

        return edgevae.Score(*await self._call(self._score, x, y, draw))

    async def close(self) -> None:
        """Let the run that is on come to its end; calls that wait for one, and later calls, raise `ClosedError`."""
        self._closed = True
        for job in self._queue:
            if not job.answer.done():
                job.answer.set_exception(ClosedError("the service is shutting down"))
        if self._worker is not None:
            await self._worker
        self._thread.shutdown()

    def _reconstruct(self, x: NDArray[np.float32], y: NDArray[np.int64] | None, eps: Arrays) -> Arrays:
        return [self._model.reconstruct(x, y=y, eps=eps[0])]

    def _score(self, x: NDArray[np.float32], y: NDArray[np.int64] | None, eps: Arrays) -> Arrays:
        score = self._model.score(x, num_particles=_PARTICLES, y=y, eps=eps if len(eps) > 1 else eps[0])
        return [score.elbo, score.reconstruction, score.kl]

    async def _call(
        self,
        run: Callable[[NDArray[np.float32], NDArray[np.int64] | None, Arrays], Arrays],
        x: ArrayLike,
        y: ArrayLike | None,
        draw: Callable[[int], Arrays],
    ) -> Arrays:
        if self._closed:
            raise ClosedError("the service is shutting down")
        # What does not fit is refused here, before it can spoil a run that others share.
        observations, labels = self._model.observations(x, y)
        job = _Job(run, observations, labels, draw, asyncio.get_running_loop().create_future())
        self.calls += 1
        self._queue.append(job)
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        return await job.answer  # a caller that gives up cancels it, and the job is passed over

    async def _work(self) -> None:
        """Run until nobody waits."""
        loop = asyncio.get_running_loop()
        while jobs := self._next():
            self.runs += 1
            try:
                answers = await loop.run_in_executor(self._thread, _run_together, jobs)
            except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the callers, who wait for it
                for job in jobs:
                    if not job.answer.done():
                        job.answer.set_exception(error)
            else:
                for job, answer in zip(jobs, answers, strict=True):
                    if not job.answer.done():
                        job.answer.set_result(answer)
        self._worker = None

    def _next(self) -> list[_Job]:
        """Take the oldest job out of the queue, and with it those that can share its run."""
        waiting = [job for job in self._queue if not job.answer.done()]
        taken: list[_Job] = []
        self._queue, rows = [], 0
        for job in waiting:
            if not taken or (job.run == taken[0].run and rows + len(job.x) <= self._max_rows):
                taken.append(job)
                rows += len(job.x)
            else:
                self._queue.append(job)
        return taken


def _run_together(jobs: Sequence[_Job]) -> list[Arrays]:
    """Join the jobs' rows, run the model once, and cut its answer; in the model's thread."""
    x = np.concatenate([job.x for job in jobs])
    labels = [job.y for job in jobs if job.y is not None]
    y = np.concatenate(labels) if labels else None
    noise = zip(*(job.draw(len(job.x)) for job in jobs), strict=True)
    answer = jobs[0].run(x, y, [np.concatenate(level, axis=-2) for level in noise])
    cuts = np.cumsum([len(job.x) for job in jobs])[:-1]
    return [list(parts) for parts in zip(*(np.split(array, cuts) for array in answer), strict=True)]
