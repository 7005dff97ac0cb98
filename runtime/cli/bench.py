"""`bench`: how fast a bundle is here."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import click
import msgspec
import numpy as np

from ..errors import InputError
from ..manifest import Precision
from ..model import Model, load
from ..noise import Noise
from ..providers import usable_cpus
from .options import (
    answer,
    bundle_argument,
    json_option,
    messages,
    precision_option,
    progress,
    provider_option,
    public_key_option,
    threads_option,
)

_WARM_UP_CALLS = 3
_LEAST_CALLS = 5
_SIZES = "1,32,256"
_PROGRESS = "measuring"


class Timing(msgspec.Struct, frozen=True):
    """How long calls of one method took with one batch size.

    Args:
        method: The method of `Model`.
        batch_size: Rows in a call.
        calls: Calls that were measured.
        median_ms: Median of a call.
        p99_ms: What 99 % of the calls stayed below.
        rows_per_second: Rows of all calls over the time of all calls.
    """

    method: str
    batch_size: int
    calls: int
    median_ms: float
    p99_ms: float
    rows_per_second: float


@click.command(short_help="Measure how fast a bundle is here.")
@bundle_argument
@provider_option
@threads_option
@precision_option
@public_key_option
@click.option(
    "--batch-size", "batch_sizes", multiple=True, default=[_SIZES], help="Rows in a call; several with commas."
)
@click.option("--seconds", type=click.FloatRange(min=0.01), default=1.0, help="How long each is measured.")
@json_option
def bench(
    bundle: Path,
    provider: str,
    threads: int | None,
    precision: Precision,
    public_key: Path | None,
    batch_sizes: tuple[str, ...],
    seconds: float,
    as_json: bool,
) -> None:
    """Measure how long encode, decode, reconstruct and generate take on this machine.

    A call is one of the Python API, its checks included; reconstruct is given its noise, generate draws its own. The
    first calls are not counted. p99 needs some hundred calls to mean anything: give it --seconds.

    \b
    Examples:
      vae-run bench models/digits-mlp --seconds 0.1
      vae-run bench models/digits-mlp --batch-size 1,64 --seconds 0.05 --threads 1 --json
    """
    with messages(), load(bundle, provider, threads, precision=precision, public_key=public_key) as model:
        sizes = _sizes(batch_sizes)
        used = threads or usable_cpus()
        calls = [(name, size, call) for size in sizes for name, call in _calls(model, size)]
        timings = []
        with progress(len(calls), _PROGRESS, short=1) as advance:
            for name, size, call in calls:
                timings.append(_measure(name, size, call, seconds))
                advance(1)
        answer(
            as_json,
            _table(model, used, timings),
            name=model.manifest.name,
            provider=model.provider,
            precision=precision,
            threads=used,
            timings=[msgspec.to_builtins(timing) for timing in timings],
        )


def _sizes(texts: tuple[str, ...]) -> list[int]:
    try:
        sizes = [int(size) for text in texts for size in text.split(",")]
    except ValueError as error:
        raise InputError(f"--batch-size must be integers, like 1,32,256, got {','.join(texts)}") from error
    if min(sizes) < 1:
        raise InputError(f"--batch-size must be at least 1, got {min(sizes)}")
    return sizes


def _calls(model: Model, size: int) -> list[tuple[str, Callable[[], object]]]:
    """What can be measured of this bundle: the methods whose graphs it has, each with its arguments."""
    noise = Noise(0)
    x = noise.uniform(size * model.manifest.model.data_dim).reshape(size, -1)
    if model.manifest.preprocessing is not None:
        x = model.manifest.preprocessing.raw(x)
    eps = noise.standard_normal((size, model.z_dim))
    y = 0 if model.num_classes else None
    methods: dict[str, tuple[str, Callable[[], object]]] = {
        "encode": ("encoder", lambda: model.encode(x, y=y)),
        "decode": ("decoder", lambda: model.decode(eps, y=y)),
        "reconstruct": ("reconstruct", lambda: model.reconstruct(x, y=y, eps=eps)),
        "generate": ("decoder", lambda: model.generate(size, 0, y=y)),
    }
    return [(name, call) for name, (graph, call) in methods.items() if graph in model.manifest.graphs]


def _measure(method: str, size: int, call: Callable[[], object], seconds: float) -> Timing:
    for _ in range(_WARM_UP_CALLS):
        call()
    taken: list[int] = []
    end = time.perf_counter_ns() + round(seconds * 1e9)
    start = time.perf_counter_ns()
    while start < end or len(taken) < _LEAST_CALLS:
        call()
        stop = time.perf_counter_ns()
        taken.append(stop - start)
        start = stop
    ms = np.array(taken) / 1e6
    median, p99 = (float(value) for value in np.percentile(ms, [50, 99]))
    return Timing(method, size, len(ms), median, p99, size * len(ms) / (float(ms.sum()) / 1e3))


def _table(model: Model, threads: int, timings: list[Timing]) -> str:
    header = f"{'method':11}  {'batch':>6}  {'median ms':>10}  {'p99 ms':>10}  {'rows/s':>12}  {'calls':>7}"
    lines = [
        f"{timing.method:11}  {timing.batch_size:>6}  {timing.median_ms:>10.3f}  {timing.p99_ms:>10.3f}  "
        f"{timing.rows_per_second:>12,.0f}  {timing.calls:>7}"
        for timing in timings
    ]
    where = f"{model.manifest.name} in {model.precision} on {model.provider}, {threads} thread{'s' * (threads != 1)}"
    return "\n".join([where, header, *lines])
