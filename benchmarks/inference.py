"""Our public call compared with PyTorch, OpenVINO, NumPy, and ONNX Runtime with a stock export.

    python -m benchmarks.inference --json inference.json --chart docs/inference.svg
    python -m benchmarks.inference --beside ../before --peers ''    # before and after, in one run

The model is untrained: the weights do not change the time. `reconstruct` is timed with given noise, from NumPy arrays
to a NumPy array, including our checks of the input. All ways must give the same numbers, to 1e-5 (lower precisions to
0.1), with the same number of threads. They take turns, and medians are compared. The table shows our time divided by
that of each peer: below 1, ours is faster.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypedDict

import click
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.peers import BESIDE, EAGER, OURS, PEERS, Peers, inputs
from benchmarks.timing import check_equal, draw_bars, medians, time_in_turn
from edgevae import Noise, ReducedPrecision
from edgevae.train import ARCHITECTURES

_TOLERANCE, _REDUCED_TOLERANCE = 1e-5, 0.1
_NOISE_SHAPE = (4096, 50)
_TORCH_NOISE = "torch.randn"
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Cell(TypedDict):
    """One architecture, number of threads and batch size: the median seconds of each way."""

    architecture: str
    threads: int
    batch: int
    seconds: dict[str, float]


class Measured(TypedDict):
    """What one process measured.

    Args:
        cells: Its part of the table.
        noise_seconds: Seconds to draw the noise of 4,096 rows, by our runtime and by PyTorch.
        graph_bytes: Sizes of the graph, by file.
    """

    cells: list[Cell]
    noise_seconds: dict[str, float]
    graph_bytes: dict[str, int]


def measure(
    architecture: str,
    threads: int,
    batches: tuple[int, ...],
    names: tuple[str, ...],
    precisions: tuple[ReducedPrecision, ...],
    repeats: int,
    block_s: float,
    checkout: Path | None,
) -> Measured:
    """Check and time all ways; called in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        peers = Peers(architecture, threads, Path(folder), precisions, checkout)
        cells: list[Cell] = []
        for batch in batches:
            x, eps = inputs(batch, peers.z_dim)
            expected = dict(peers.ways((EAGER,), batch))[EAGER](x, eps)
            ways = dict(peers.ways(names, batch))
            for name, way in ways.items():
                reduced = name.startswith(OURS) and name != OURS
                check_equal(name, way(x, eps), expected, _REDUCED_TOLERANCE if reduced else _TOLERANCE)
            calls = {name: functools.partial(way, x, eps) for name, way in ways.items()}
            seconds = medians(time_in_turn(calls, repeats, block_s))
            cells.append({"architecture": architecture, "threads": threads, "batch": batch, "seconds": seconds})
        files = {path.name: path.stat().st_size for path in peers.bundle.glob("reconstruct*.onnx")}
    noise = measure_noise(repeats, block_s)
    return {"cells": cells, "noise_seconds": noise, "graph_bytes": files}


def measure_noise(repeats: int, block_s: float) -> dict[str, float]:
    """Return the median seconds of drawing the same noise, ours and PyTorch's."""
    ours, generator = Noise(0), torch.Generator()
    generator.manual_seed(0)
    calls: dict[str, Callable[[], NDArray[np.float32]]] = {
        OURS: lambda: ours.standard_normal(_NOISE_SHAPE),
        _TORCH_NOISE: lambda: torch.randn(_NOISE_SHAPE, generator=generator).numpy(),
    }
    check_equal("noise", calls[OURS](), calls[_TORCH_NOISE](), _TOLERANCE)
    return medians(time_in_turn(calls, repeats, block_s))


def in_own_process(threads: int, *arguments: object) -> Measured:
    """Call `measure` in a new process: libraries read the number of threads when they are loaded."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)))
    try:
        architecture, *others = arguments
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(measure, architecture, threads, *others).result()  # type: ignore[arg-type]  # measure's own, in order
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def table(cells: list[Cell]) -> list[str]:
    """Return the lines of the table: our milliseconds, and our time divided by each peer's."""
    names = [name for name in dict.fromkeys(name for cell in cells for name in cell["seconds"]) if name != OURS]
    lines = [f"| network | threads | batch | {OURS}, ms | {' | '.join(names)} |", f"|{' --- |' * (4 + len(names))}"]
    for cell in cells:
        seconds = cell["seconds"]
        ratios = (f"{seconds[OURS] / seconds[name]:.2f}" if name in seconds else "" for name in names)
        shown = [cell["architecture"], cell["threads"], f"{cell['batch']:,}", f"{1e3 * seconds[OURS]:.3f}", *ratios]
        lines.append(f"| {' | '.join(map(str, shown))} |")
    return lines


def _numbers(_context: click.Context, _option: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter("give numbers with commas between them, like 1,32") from error


def _names(_context: click.Context, option: click.Parameter, text: str) -> tuple[str, ...]:
    names = tuple(filter(None, text.split(",")))
    known = {"architectures": tuple(ARCHITECTURES), "peers": PEERS, "precisions": ("fp16", "int8")}[option.name or ""]
    if unknown := set(names) - set(known):
        raise click.BadParameter(f"{', '.join(sorted(unknown))}: there are {', '.join(known)}")
    return names


@click.command(context_settings={"show_default": True})
@click.option("--architectures", callback=_names, default="mlp,conv", help="Networks.")
@click.option("--batch-sizes", callback=_numbers, default="1,32,256,4096", help="Rows in a call.")
@click.option("--threads", callback=_numbers, default="1,2", help="Threads that each way may use.")
@click.option("--peers", callback=_names, default=",".join(PEERS), help="Other ways; ours is always measured.")
@click.option("--precisions", callback=_names, default="int8", help="Our lower precisions; '' for none.")
@click.option("--repeats", type=click.IntRange(min=1), default=11, help="Turns.")
@click.option("--block-ms", type=click.IntRange(min=1), default=100, help="Milliseconds of a turn, at least one call.")
@click.option(
    "--beside",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Another checkout of this project, whose exporter and runtime are measured too.",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Where to write the numbers.")
@click.option(
    "--chart", type=click.Path(path_type=Path), help="Where to draw those of the first --threads, .svg or .png."
)
def main(
    architectures: tuple[str, ...],
    batch_sizes: tuple[int, ...],
    threads: tuple[int, ...],
    peers: tuple[str, ...],
    precisions: tuple[ReducedPrecision, ...],
    repeats: int,
    block_ms: int,
    beside: Path | None,
    json_file: Path | None,
    chart: Path | None,
) -> None:
    """Print the table; `edgevae` is ours; the other columns are our time divided by a peer's."""
    names = (OURS, *[BESIDE] * (beside is not None), *(name for name in peers if name != OURS))
    parts = [
        in_own_process(count, architecture, batch_sizes, names, precisions, repeats, block_ms / 1e3, beside)
        for architecture in architectures
        for count in threads
    ]
    cells = [cell for part in parts for cell in part["cells"]]
    click.echo("\n".join(table(cells)))
    noise = parts[0]["noise_seconds"]
    click.echo(f"noise of {_NOISE_SHAPE}: {noise[OURS] / noise[_TORCH_NOISE]:.2f} of {_TORCH_NOISE}'s time")
    for name, size in sorted(parts[0]["graph_bytes"].items()):
        click.echo(f"{architectures[0]}: {name} {size:,} bytes")
    if json_file is not None:
        json_file.write_text(json.dumps(parts, indent=2) + "\n", encoding="utf-8")
    if chart is not None:
        draw_bars(chart, [(_title(cell), cell["seconds"]) for cell in cells if cell["threads"] == threads[0]], OURS)


def _title(cell: Cell) -> str:
    return f"{cell['architecture']}, batch {cell['batch']:,}"


if __name__ == "__main__":
    main()
