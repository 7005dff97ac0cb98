"""Find the fastest setting on this device: provider and number of threads.

    python examples/benchmark_my_device.py models/mnist-mlp --batch-size 1 --batch-size 64

`vae-run bench` measures one setting; this compares several. They take turns, so that other work on the device slows all
of them down alike.
"""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from numpy.typing import NDArray

import edgevae

SIMILAR = 1.1  # medians within 10 % count as equal; then fewer threads win


class Setting(NamedTuple):
    """Arguments of `edgevae.load`."""

    provider: str
    threads: int


def load_settings(bundle: Path, provider: str, threads: tuple[int, ...]) -> dict[Setting, edgevae.Model]:
    """Load the model with each number of threads. If the provider does not work here, print why and return nothing."""
    # Threads matter on the CPU only.
    counts = threads if provider == "cpu" else threads[:1]
    try:
        return {Setting(provider, count): edgevae.load(bundle, provider=provider, threads=count) for count in counts}
    except edgevae.ProviderError as error:
        click.echo(f"left out: {error}\n", err=True)
        return {}


def measure(model: edgevae.Model, x: NDArray[np.float32], y: NDArray[np.int64] | None, seconds: float) -> list[float]:
    """Return the seconds of each call; as many calls as fit into `seconds`, at least one."""
    model.reconstruct(x, y=y)  # warm-up: the caches hold another setting's data
    taken: list[float] = []
    while not taken or sum(taken) < seconds:
        start = time.perf_counter()
        model.reconstruct(x, y=y)
        taken.append(time.perf_counter() - start)
    return taken


def fastest(medians: dict[Setting, float]) -> Setting:
    """Return the setting with the smallest median; among similar ones, that with the fewest threads."""
    limit = min(medians.values()) * SIMILAR
    return min((setting for setting in medians if medians[setting] <= limit), key=lambda setting: setting.threads)


def thread_counts() -> tuple[int, ...]:
    """Return 1, 2, 4, ... and the number of CPUs that this process may use."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return (*(2**power for power in range((cpus - 1).bit_length())), cpus)


@click.command(context_settings={"show_default": True})
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--batch-size", "batch_sizes", type=click.IntRange(min=1), multiple=True, default=(1, 64), help="Rows.")
@click.option("--provider", "providers", multiple=True, default=("cpu", "cuda"), help="Where to run.")
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    multiple=True,
    help="Threads in an operator.  [default: 1, 2, 4, ... up to all CPUs]",
)
@click.option("--seconds", type=click.FloatRange(min=0), default=2.0, help="For each setting and batch size.")
@click.option("--repeats", type=click.IntRange(min=1), default=5, help="Turns in which a setting spends its time.")
def main(
    bundle: Path,
    batch_sizes: tuple[int, ...],
    providers: tuple[str, ...],
    threads: tuple[int, ...],
    seconds: float,
    repeats: int,
) -> None:
    """Measure `reconstruct` of BUNDLE, and recommend a setting for each batch size."""
    try:
        models = {
            setting: model
            for provider in providers
            for setting, model in load_settings(bundle, provider, threads or thread_counts()).items()
        }
    except edgevae.EdgeVAEError as error:
        raise click.UsageError(str(error)) from error
    if not models:
        raise click.UsageError(f"none of the providers works here: {', '.join(providers)}")
    some = next(iter(models.values()))
    labels = np.arange(max(batch_sizes)) % some.num_classes if some.num_classes else None
    images = some.generate(max(batch_sizes), seed=0, y=labels)

    taken: dict[tuple[int, Setting], list[float]] = {(size, setting): [] for size in batch_sizes for setting in models}
    for _ in range(repeats):
        for size, setting in taken:
            y = None if labels is None else labels[:size]
            taken[size, setting] += measure(models[setting], images[:size], y, seconds / repeats)

    click.echo("batch  provider  threads  median ms    p99 ms     rows/s    calls")
    for (size, setting), times in taken.items():
        median, p99 = statistics.median(times), float(np.quantile(times, 0.99))
        click.echo(
            f"{size:5}  {setting.provider:8}  {setting.threads:7}  {median * 1e3:9.4f}  {p99 * 1e3:8.4f}"
            f"  {size / median:9.0f}  {len(times):7}"
        )
    click.echo()
    for size in dict.fromkeys(batch_sizes):
        provider, count = fastest({setting: statistics.median(taken[size, setting]) for setting in models})
        click.echo(f'batches of {size}: edgevae.load("{bundle}", provider="{provider}", threads={count})')


if __name__ == "__main__":
    main()
