"""`encode`, `decode` and `reconstruct`: from rows of files to numbers, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from ..manifest import level_names
from ..model import Model
from ..noise import Noise
from ..posterior import Posterior
from .options import (
    BLOCK_ROWS,
    answer,
    batch_size_option,
    bundle_argument,
    inputs_argument,
    json_option,
    labels_option,
    of_all,
    out_option,
    progress,
    runs_a_model,
    seed_option,
    y_option,
)
from .outputs import rows_file, save_pairs, save_picture
from .rows import Rows, open_latents, open_observations

FloatArray = NDArray[np.float32]

_PAIR_COLUMNS, _PAIRS_SHOWN = 12, 36
_GRID_COLUMNS, _GRID_SHOWN = 8, 64


@click.command(short_help="Write q(z|x) of observations.")
@bundle_argument
@inputs_argument
@y_option
@labels_option
@out_option(".npz", ".npy", ".csv", ".json")
@batch_size_option
@json_option
@runs_a_model
def encode(
    model: Model,
    inputs: tuple[Path, ...],
    y: int | None,
    labels: Path | None,
    out: Path,
    batch_size: int,
    as_json: bool,
) -> None:
    """Write z_loc and z_scale of each observation; of a hierarchy all levels, of a mixture component_probs too.

    A .npz or .json holds latent_space_id as well, by which `decode` knows whose latents they are, and the labels y
    of a conditional model; a .csv has a column a number; a .npy is z_loc alone.

    \b
    Examples:
      vae-run encode models/digits-mlp models/digits-mlp/reference.npz --out posterior.npz
      vae-run encode models/mnist-conditional models/mnist-conditional/reference.npz --y 3 --out posterior.csv
    """
    rows = open_observations(inputs, model.manifest.model, y, labels, model.manifest.preprocessing)
    others = {"latent_space_id": np.array(model.manifest.latent_space_id)}
    with rows_file(out, rows.count, others) as append, progress(rows.count, "encoding") as advance:
        for x, y_of_x in rows.batches(batch_size):
            columns = _columns(model.encode(x, y=y_of_x), y_of_x)
            append(**columns)
            advance(len(x))
    names = list(columns)[:1] if out.suffix.lower() == ".npy" else list(columns)
    answer(
        as_json,
        f"{out}: {', '.join(names)}, {rows.count} rows of {model.z_dim}",
        out=out,
        rows=rows.count,
        arrays=names,
        z_dim=model.z_dim,
        latent_space_id=model.manifest.latent_space_id,
        provider=model.provider,
    )


@click.command(short_help="Write what latents decode to.")
@bundle_argument
@click.argument("latents", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@y_option
@labels_option
@out_option(".png", ".npy", ".npz")
@batch_size_option
@json_option
@runs_a_model
def decode(
    model: Model, latents: Path, y: int | None, labels: Path | None, out: Path, batch_size: int, as_json: bool
) -> None:
    """Write what latents decode to: loc_img, the mean of p(x|z).

    LATENTS is a .npz file with z or z_loc, like those that `encode` writes, or a .npy file with z. Where a .npz names
    its latent_space_id, another model's latents are refused. A .png shows the first 64.

    \b
    Examples:
      vae-run encode models/digits-mlp models/digits-mlp/reference.npz --out posterior.npz
      vae-run decode models/digits-mlp posterior.npz --out decoded.png
      vae-run decode models/mnist-conditional models/mnist-conditional/reference.npz --y 3 --out decoded.npy
    """
    rows = open_latents(latents, model.manifest.model, y, labels)
    if out.suffix.lower() == ".png":
        z, y_of_z = rows.first(_GRID_SHOWN)
        save_picture(out, model.decode(z, y=y_of_z), model.data_shape, _GRID_COLUMNS)
    else:
        with rows_file(out, rows.count) as append, progress(rows.count, "decoding") as advance:
            for z, y_of_z in rows.batches(batch_size):
                append(loc_img=model.decode(z, y=y_of_z))
                advance(len(z))
    written = min(rows.count, _GRID_SHOWN) if out.suffix.lower() == ".png" else rows.count
    text = f"{out}: {of_all(written, rows.count)}, decoded on {model.provider}"
    answer(as_json, text, out=out, rows=rows.count, written=written, provider=model.provider)


@click.command(short_help="Encode observations and decode them again.")
@bundle_argument
@inputs_argument
@y_option
@labels_option
@seed_option(None)
@out_option(".png", ".npy", ".npz")
@batch_size_option
@json_option
@runs_a_model
def reconstruct(
    model: Model,
    inputs: tuple[Path, ...],
    y: int | None,
    labels: Path | None,
    seed: int | None,
    out: Path,
    batch_size: int,
    as_json: bool,
) -> None:
    """Write the reconstruction of each observation; without --seed that of the posterior's mean.

    With --seed, up to 1024 rows are what Pyro's reconstruct_img gives after that seed; more draw their noise 1024 rows
    at a time, whatever --batch-size. Memory does not grow with the rows of .npy and IDX files and of folders. A .png
    shows the first 36, each row of observations above its reconstructions; the others hold all of them.

    \b
    Examples:
      vae-run reconstruct models/digits-mlp models/digits-mlp/reference.npz --out reconstructions.png
      vae-run reconstruct models/digits-mlp models/digits-mlp/reference.npz --seed 0 --out loc_img.npy
    """
    rows = open_observations(inputs, model.manifest.model, y, labels, model.manifest.preprocessing)
    batches = _reconstructions(model, rows, seed, batch_size)
    count = rows.count
    if out.suffix.lower() == ".png":
        x, _ = model.observations(*rows.first(_PAIRS_SHOWN))
        count = len(x)
        save_pairs(out, x, _first(batches, count), model.data_shape, _PAIR_COLUMNS)
    else:
        with rows_file(out, count) as append, progress(count, "reconstructing") as advance:
            for loc_img in batches:
                append(loc_img=loc_img)
                advance(len(loc_img))
    text = f"{out}: {of_all(count, rows.count)}, reconstructed on {model.provider}"
    answer(as_json, text, out=out, rows=rows.count, written=count, seed=seed, provider=model.provider)


def _columns(posterior: Posterior, y: NDArray[np.int64] | None) -> dict[str, NDArray[Any]]:
    """What is written of a posterior, by name, z_loc first; shape `(rows, ...)` each."""
    locs, scales = (level_names(name, len(posterior.levels)) for name in ("z_loc", "z_scale"))
    columns: dict[str, NDArray[Any]] = {}
    for loc, scale, level in zip(locs, scales, posterior.levels, strict=True):
        columns |= {loc: np.asarray(level.z_loc), scale: level.z_scale}
    if posterior.component_probs is not None:
        columns["component_probs"] = posterior.component_probs
    return columns if y is None else {**columns, "y": y}


def _reconstructions(model: Model, rows: Rows, seed: int | None, batch_size: int) -> Iterator[FloatArray]:
    if seed is None or rows.count > BLOCK_ROWS:
        x = (part for part, _ in rows.batches(batch_size))
        yield from model.reconstruct_batches(x, batch_size, y=rows.y, seed=seed)
        return
    noise, start = Noise(seed).standard_normal((rows.count, model.z_dim)), 0
    for observed, y in rows.batches(batch_size):
        yield model.reconstruct(observed, y=y, eps=noise[start : start + len(observed)])
        start += len(observed)


def _first(batches: Iterator[FloatArray], count: int) -> FloatArray:
    """The first rows of a stream, of which no more is computed than they need."""
    found: list[FloatArray] = []
    while sum(map(len, found)) < count:
        found.append(next(batches))
    return np.concatenate(found)[:count]
