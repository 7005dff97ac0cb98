"""Many rows from a file to a file: rows a second beside a bare loop over `session.run`, and memory.

    python -m benchmarks.streaming --rows 1000000

The rows are the images of the model's reference, repeated, float32 in a `.npy` file. Ours is `reconstruct_batches`,
with and without the noise of a seed; the bare loop runs the same graph in ONNX Runtime without noise and checks. They
write to a memory-mapped file, take turns of some thousand rows, and their medians are compared. Memory is the peak of
`vae-run reconstruct` in a process of its own, for all rows and for a hundredth of them.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime
from numpy.typing import NDArray

import edgevae
from benchmarks.footprint import run_once

_BATCH = 1024
_TURN = 20 * _BATCH
_TOLERANCE = 1e-5


def write_rows(path: Path, images: NDArray[np.float32], count: int) -> None:
    """Write `count` rows to a `.npy` file, repeating the images."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (count, images.shape[1])}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, count, len(images)):
            file.write(images[: count - start].tobytes())


def peak_memory(bundle: Path, rows: Path, threads: int, out: Path) -> float:
    """Return the peak of resident memory, in MiB, of `vae-run reconstruct`."""
    command = [sys.executable, "-m", "edgevae", "reconstruct", str(bundle), str(rows), "--seed", "0"]
    command += ["--provider", "cpu", "--threads", str(threads), "--out", str(out)]
    _, peak = run_once(command)
    return peak


def bare_loop(bundle: Path, threads: int, z_dim: int) -> Callable[[NDArray[Any], NDArray[np.float32]], None]:
    """Return a loop over `session.run`, batch by batch."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(bundle / "reconstruct.onnx", options, providers=["CPUExecutionProvider"])
    eps = np.zeros((_BATCH, z_dim), np.float32)

    def run(x: NDArray[Any], out: NDArray[np.float32]) -> None:
        for start in range(0, len(x), _BATCH):
            part = x[start : start + _BATCH]
            out[start : start + _BATCH] = session.run(["loc_img"], {"x": part, "eps": eps[: len(part)]})[0]

    return run


def our_loop(model: edgevae.Model, seed: int | None) -> Callable[[NDArray[Any], NDArray[np.float32]], None]:
    """Return a loop over `reconstruct_batches`."""

    def run(x: NDArray[Any], out: NDArray[np.float32]) -> None:
        start = 0
        for part in model.reconstruct_batches(x, _BATCH, seed=seed):
            out[start : start + len(part)] = part
            start += len(part)

    return run


def time_loops(bundle: Path, threads: int, source: Path, target: Path) -> dict[str, list[float]]:
    """Check that the loops agree; return the seconds of each turn of each loop."""
    model = edgevae.load(bundle, provider="cpu", threads=threads)
    loops = {
        "bare session.run": bare_loop(bundle, threads, model.z_dim),
        "reconstruct_batches": our_loop(model, None),
        "reconstruct_batches, seed 0": our_loop(model, 0),
    }
    x = np.load(source, mmap_mode="r")
    out = np.lib.format.open_memmap(target, "w+", np.float32, x.shape)
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for start in range(0, len(x) - _TURN + 1, _TURN):
        part, result = x[start : start + _TURN], out[start : start + _TURN]
        loops["bare session.run"](part, result)  # so that no timed loop is the first to touch these pages
        expected = result.copy()
        for name, loop in loops.items():
            begin = time.perf_counter()
            loop(part, result)
            seconds[name].append(time.perf_counter() - begin)
            if "seed" not in name and not np.allclose(result, expected, atol=_TOLERANCE, rtol=0):
                raise click.ClickException(f"{name} gives other numbers")
    return seconds


@click.command(context_settings={"show_default": True})
@click.option("--bundle", type=click.Path(exists=True, path_type=Path), default="models/mnist-mlp", help="The model.")
@click.option("--rows", type=click.IntRange(min=_TURN), default=1_000_000, help="How many.")
@click.option("--threads", type=click.IntRange(min=1), default=2, help="Threads in an operator.")
def main(bundle: Path, rows: int, threads: int) -> None:
    """Print the table."""
    images = np.load(bundle / "reference.npz")["x"]
    with tempfile.TemporaryDirectory() as folder:
        source, few, target = (Path(folder) / f"{name}.npy" for name in ("x", "few", "loc_img"))
        for path, count in ((few, rows // 100), (source, rows)):
            write_rows(path, images, count)
            peak = peak_memory(bundle, path, threads, target)
            click.echo(f"vae-run reconstruct, {count:9,} rows: {peak:5.0f} MiB at its peak")
        seconds = time_loops(bundle, threads, source, target)
    bare = statistics.median(seconds["bare session.run"])
    done = len(seconds["bare session.run"]) * _TURN
    click.echo(f"{bundle.name}, {done:,} rows each, batch {_BATCH}, {threads} threads, medians of turns")
    for name, times in seconds.items():
        median = statistics.median(times)
        click.echo(f"{name:28} {_TURN / median:9,.0f} rows/s  {bare / median:5.2f} of bare")


if __name__ == "__main__":
    main()
