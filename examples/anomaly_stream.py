"""Find the unusual images of a stream: those with a score below the model's threshold.

    python examples/anomaly_stream.py models/mnist-mlp images.npy more/*.png
    camera | python examples/anomaly_stream.py models/mnist-mlp -    # paths, one a line, as they come

Unusual images are printed to standard output, files that cannot be read to standard error. The exit code is 0 if all
images were usual, 3 if some were unusual, and 2 if a file could not be read.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import click
import numpy as np
from numpy.typing import NDArray

import edgevae
from edgevae.images import read_image

UNREADABLE, UNUSUAL = 2, 3
PARTICLES = 10  # draws of z for each image, as for the threshold
READ_AHEAD = 256  # images; bounds the memory, however long the stream is

Image: TypeAlias = "tuple[str, NDArray[np.float32] | Exception]"
"""A name, and one observation, shape `(data_dim,)`, or the error that came instead."""


def observations(model: edgevae.Model, paths: Iterable[str], y: int | None) -> Iterator[Image]:
    """Yield the images of files and folders. Each is checked by itself: a bad one does not end the stream."""
    for path in paths:
        found = Path(path)
        for file in sorted(found.iterdir()) if found.is_dir() else [found]:
            try:
                rows = _rows(file, model)
                # Checks shape and dtype once, without reading values; a single row without a batch axis is refused.
                model.observations(rows[:0] if rows.ndim > 1 else rows, y)
            except Exception as error:  # noqa: BLE001 - damaged files make NumPy and Pillow raise anything
                yield str(file), error
                continue
            for index, row in enumerate(rows):
                name = f"{file}[{index}]" if file.suffix == ".npy" else str(file)
                try:
                    yield name, model.observations(row[None], y)[0][0]
                except edgevae.InputError as error:
                    yield name, error


def _rows(file: Path, model: edgevae.Model) -> NDArray[Any]:
    """Return all rows of a file; arrays are memory-mapped, so that a row is read when it is needed."""
    if file.suffix == ".npy":
        return np.atleast_1d(np.load(file, mmap_mode="r", allow_pickle=False))
    return read_image(file, model.data_shape)[None]


def batches(images: Iterable[Image], size: int) -> Iterator[list[Image]]:
    """Yield the images that have arrived, at most `size`; in a slow stream no image waits for a full batch."""
    arrived: queue.Queue[Image | Exception | None] = queue.Queue(READ_AHEAD)

    def read() -> None:
        try:
            for image in images:
                arrived.put(image)
            arrived.put(None)
        except Exception as error:  # noqa: BLE001 - raised again below: the stream must not seem complete
            arrived.put(error)

    # A daemon, so that the program can end while the thread still waits for input.
    threading.Thread(target=read, daemon=True).start()
    batch: list[Image] = []
    while (image := arrived.get()) is not None:
        if isinstance(image, Exception):
            raise image
        batch.append(image)
        if len(batch) == size or arrived.empty():
            yield batch
            batch = []
    if batch:
        yield batch


def noise(model: edgevae.Model, seed: int) -> list[NDArray[np.float32]]:
    """Return the noise of `model.score(image, seed=seed)` for one image: for each level `(particles, 1, size)`.

    Every image is scored with this noise, so that its score does not depend on its neighbours in the stream.
    """
    stream = edgevae.Noise(seed)
    sizes = model.manifest.model.z_dims
    draws = [[stream.standard_normal((1, size)) for size in sizes] for _ in range(PARTICLES)]
    return [np.stack(level) for level in zip(*draws, strict=True)]


@click.command(context_settings={"show_default": True})
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("inputs", nargs=-1, required=True)
@click.option("--rate", type=float, default=0.01, help="Part of the usual images that may be called unusual.")
@click.option("--batch-size", type=click.IntRange(min=1), default=64, help="Images scored at once, at most.")
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, help="Noise stream of the scores.")
@click.option("--y", type=int, help="Label of all images, for a conditional model.")
def main(bundle: Path, inputs: tuple[str, ...], rate: float, batch_size: int, seed: int, y: int | None) -> None:
    """Score INPUTS: .npy arrays, images, folders of them, or - for paths on the standard input."""
    try:
        model = edgevae.load(bundle)
        threshold = model.threshold(rate)  # a part of `rate` of the test images has a lower ELBO
        model.observations(np.empty((0, *model.data_shape), np.float32), y)  # checks the label
    except edgevae.EdgeVAEError as error:
        raise click.UsageError(str(error)) from error
    lines = (line.rstrip("\n") for path in inputs for line in (sys.stdin if path == "-" else [path]))
    paths = (line for line in lines if line)
    drawn = noise(model, seed)
    scored = unusual = unreadable = 0
    for batch in batches(observations(model, paths, y), batch_size):
        names, rows = [], []
        for name, row in batch:
            if isinstance(row, Exception):
                unreadable += 1
                text = str(row)
                click.echo(text if name in text else f"{name}: {text}", err=True)
            else:
                names.append(name)
                rows.append(row)
        if not rows:
            continue
        eps = [level.repeat(len(rows), axis=1) for level in drawn]
        score = model.score(np.stack(rows), y=y, num_particles=PARTICLES, eps=eps if len(eps) > 1 else eps[0])
        scored += len(rows)
        for index in np.flatnonzero(score.below(threshold)):
            unusual += 1
            elbo, reconstruction, kl = score.elbo[index], score.reconstruction[index], score.kl[index]
            below = threshold - elbo
            parts = f"reconstruction {reconstruction:.2f}, KL {kl:.2f}"
            click.echo(f"{names[index]}: ELBO {elbo:.2f} nats ({parts}), {below:.2f} below the threshold")
    part = f" ({unusual / scored:.1%}; of usual ones {rate:.1%} are expected)" if scored else ""
    click.echo(
        f"{scored} images scored, {unusual} unusual{part}, {unreadable} not readable; threshold {threshold:.2f} nats"
    )
    sys.exit(UNREADABLE if unreadable else UNUSUAL if unusual else 0)


if __name__ == "__main__":
    main()
