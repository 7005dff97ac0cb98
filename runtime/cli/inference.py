"""Commands that run a model: `encode`, `decode`, `reconstruct`, `score`, `generate`, `interpolate`, `traverse`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from .. import InputError, Model, Noise, Posterior, Score, level_names
from . import by_site
from .inputs import Rows, open_latents, open_observations
from .options import (
    BLOCK_ROWS,
    COMPUTED,
    Decorator,
    batch_size_option,
    bundle_argument,
    inputs_argument,
    json_option,
    labels_option,
    option,
    out_option,
    seed_option,
    with_model,
    y_option,
)
from .outputs import rows_file, save_pairs, save_picture, save_rows
from .scoring import DEFAULT_RATE, write_scores
from .sections import SectionedCommand
from .terminal import print_result, progress

FloatArray = NDArray[np.float32]

# What a picture shows.
_PAIR_COLUMNS, _MAX_PAIRS_SHOWN = 12, 36
_GRID_COLUMNS, _MAX_GRID_SHOWN = 8, 64
_MAX_LINES_SHOWN = 16

_ONE_LATENT = (
    "it has no single latent with a posterior mean to move along; change the latents of encode, and decode them"
)
_DEFAULT_DIMS_OF_ONE_ROW = 8
_LINES_BLOCK_ROWS = 64  # of which interpolate and traverse decode lines at a time


@click.command(cls=SectionedCommand, short_help="Write q(z|x) of observations.")
@bundle_argument
@inputs_argument
@y_option
@labels_option
@seed_option(None, "  [default: 0 where a program by its sites draws, else no noise]")
@out_option(".npz", ".npy", ".csv", ".json")
@json_option
@batch_size_option
@with_model(by_site.encode)
def encode(
    model: Model,
    inputs: tuple[Path, ...],
    y: int | None,
    labels: Path | None,
    seed: int | None,
    out: Path,
    batch_size: int,
    as_json: bool,
) -> None:
    """Write z_loc and z_scale of each observation: of every level of a hierarchy, with component_probs of a mixture.

    For images and for several files the first column, or array, is file: the path of each row's file. A conditional
    model adds the labels y. A .npz or .json also holds latent_space_id, with which `decode` refuses another model's
    latents. A .csv has a column for each number. A .npy holds z_loc alone. --seed is for a hierarchy, whose levels
    depend on draws of those below; noise is drawn for --batch-size rows at a time.

    Of a program by its sites there are the parameters of each site, like z.loc, its draw, z, and the arguments that
    `decode` reads. INPUTS are .npz files with its arguments by name; where it has one, also .npy, IDX and images, whose
    pixels become [0, 1].

    \b
    Examples:
      vae-run encode models/digits-mlp models/digits-mlp/reference.npz --out posterior.npz
      vae-run encode models/mnist-conditional models/mnist-conditional/reference.npz --y 3 --out posterior.csv
    """
    rows = open_observations(inputs, model.manifest, y, labels)
    others = {"latent_space_id": np.array(model.manifest.latent_space_id)}
    noise = None if seed is None else Noise(seed)
    with rows_file(out, rows.count, others) as append, progress(rows.count, "encoding") as advance:
        for (x, y_of_x), files in zip(rows.batches(batch_size), rows.file_column(batch_size), strict=True):
            columns = _columns(model.encode(x, y=y_of_x, seed=noise), y_of_x)
            columns = {"z_loc": columns["z_loc"]} if out.suffix.lower() == ".npy" else {**files, **columns}
            append(**columns)
            advance(len(x))
    names = list(columns)
    print_result(
        as_json,
        f"{out}: {', '.join(names)}, {rows.count} rows of {model.z_dim}",
        out=out,
        rows=rows.count,
        arrays=names,
        z_dim=model.z_dim,
        latent_space_id=model.manifest.latent_space_id,
        provider=model.provider,
    )


@click.command(cls=SectionedCommand, short_help="Write the means of p(x|z) of latents.")
@bundle_argument
@click.argument("latents", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@y_option
@labels_option
@out_option(".png", ".npy", ".npz")
@json_option
@batch_size_option
@with_model(by_site.decode)
def decode(
    model: Model, latents: Path, y: int | None, labels: Path | None, out: Path, batch_size: int, as_json: bool
) -> None:
    """Write loc_img, the mean of p(x|z), of latents z.

    LATENTS is a .npz file with z or z_loc, like those that `encode` writes, or a .npy file with z. If a .npz holds a
    latent_space_id, latents of another model are refused. A .png shows the first 64.

    Of a program by its sites LATENTS is a .npz that `encode` wrote; what comes out are the parameters and the mean of
    each observed site, like x.probs and x.mean, and computed sites. A .npy or .png holds the mean, where there is one.

    \b
    Examples:
      vae-run encode models/digits-mlp models/digits-mlp/reference.npz --out posterior.npz
      vae-run decode models/digits-mlp posterior.npz --out decoded.png
      vae-run decode models/mnist-conditional models/mnist-conditional/reference.npz --y 3 --out decoded.npy
    """
    rows = open_latents(latents, model.manifest.model, y, labels)
    if out.suffix.lower() == ".png":
        z, y_of_z = rows.first(_MAX_GRID_SHOWN)
        save_picture(out, model.decode(z, y=y_of_z), model.data_shape, _GRID_COLUMNS)
    else:
        with rows_file(out, rows.count) as append, progress(rows.count, "decoding") as advance:
            for z, y_of_z in rows.batches(batch_size):
                append(loc_img=model.decode(z, y=y_of_z))
                advance(len(z))
    written = min(rows.count, _MAX_GRID_SHOWN) if out.suffix.lower() == ".png" else rows.count
    text = f"{out}: {_count_text(written, rows.count)}, decoded on {model.provider}"
    print_result(as_json, text, out=out, rows=rows.count, written=written, provider=model.provider)


@click.command(cls=SectionedCommand, short_help="Encode observations and decode them again.")
@bundle_argument
@inputs_argument
@y_option
@labels_option
@seed_option(None, "  [default: no noise, the posterior mean]")
@out_option(".png", ".npy", ".npz")
@json_option
@batch_size_option
@with_model(by_site.reconstruct)
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
    """Write the reconstruction loc_img of each observation: from the posterior mean, or with --seed from a sample of z.

    With --seed, up to 1024 rows are equal to those of Pyro's reconstruct_img after that seed. For more rows the noise
    is drawn 1024 rows at a time, whatever the --batch-size. Memory does not grow with the rows of .npy files, IDX files
    and folders. A .png shows the first 36: each line of observations above its reconstructions. The other formats hold
    all.

    Of a program by its sites there is the mean of each observed site, like x.mean, and --seed is needed; noise is drawn
    for --batch-size rows at a time, and a .png shows the first 64 means.

    \b
    Examples:
      vae-run reconstruct models/digits-mlp models/digits-mlp/reference.npz --out reconstructions.png
      vae-run reconstruct models/digits-mlp models/digits-mlp/reference.npz --seed 0 --out loc_img.npy
    """
    rows = open_observations(inputs, model.manifest, y, labels)
    batches = _reconstructions(model, rows, seed, batch_size)
    count = rows.count
    if out.suffix.lower() == ".png":
        x, _ = model.observations(*rows.first(_MAX_PAIRS_SHOWN))
        count = len(x)
        save_pairs(out, x, _first(batches, count), model.data_shape, _PAIR_COLUMNS)
    else:
        with rows_file(out, count) as append, progress(count, "reconstructing") as advance:
            for loc_img in batches:
                append(loc_img=loc_img)
                advance(len(loc_img))
    text = f"{out}: {_count_text(count, rows.count)}, reconstructed on {model.provider}"
    print_result(as_json, text, out=out, rows=rows.count, written=count, seed=seed, provider=model.provider)


def _count_text(count: int, total: int, what: str = "rows") -> str:
    """Say how many were written, and of how many if not all were."""
    return f"{count} {what}" if count == total else f"the first {count} of {total} {what}"


def _columns(posterior: Posterior, y: NDArray[np.int64] | None) -> dict[str, NDArray[Any]]:
    """Return the arrays of a posterior by name, shape `(rows, ...)` each; z_loc first."""
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
    """Join the first rows of a stream of batches, without computing later batches."""
    found: list[FloatArray] = []
    while sum(map(len, found)) < count:
        found.append(next(batches))
    return np.concatenate(found)[:count]


@click.command(cls=SectionedCommand, short_help="Find anomalous observations by their ELBO.")
@bundle_argument
@inputs_argument
@option(
    COMPUTED,
    "--rate",
    type=float,
    help="Fraction of test rows below the threshold of the ELBO, so the expected fraction of false alarms.  "
    f"[default: {DEFAULT_RATE}, if the bundle holds quantiles of the test ELBO]",
)
@seed_option(0)
@y_option
@labels_option
@out_option(".csv", ".json", ".npz", required=False)
@json_option
@with_model(by_site.score)
def score(
    model: Model,
    inputs: tuple[Path, ...],
    y: int | None,
    labels: Path | None,
    seed: int,
    rate: float | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Score each observation by its ELBO in nats, and find the anomalous ones: those below a threshold.

    Columns of --out: file, the path of each row's file, for images and for several files; elbo; its parts
    reconstruction and kl; anomalous, true or false. The threshold is a quantile of the test ELBO; a bundle without
    quantiles finds nothing anomalous. Noise is drawn for 1024 rows at a time. INPUTS of a program by its sites are as
    for `encode`.

    \b
    Examples:
      vae-run score models/digits-mlp models/digits-mlp/reference.npz
      vae-run score models/digits-mlp models/digits-mlp/reference.npz --rate 0.05 --out scores.csv
    """
    rows = open_observations(inputs, model.manifest, y, labels)
    write_scores(model, _scores(model, rows, seed), rate, seed, out, as_json)


def _scores(model: Model, rows: Rows, seed: int) -> Iterator[tuple[dict[str, NDArray[Any]], Score]]:
    """Yield the score of each row, block by block, with the column `file` where rows have one."""
    noise = Noise(seed)
    with progress(rows.count, "scoring") as advance:
        for (x, y), files in zip(rows.batches(BLOCK_ROWS), rows.file_column(BLOCK_ROWS), strict=True):
            yield files, model.score(x, noise, y=y)
            advance(len(x))


def _steps_option(default: int) -> Decorator:
    return option(COMPUTED, "--steps", type=click.IntRange(min=2), default=default, help="Points on each line.")


@click.command(cls=SectionedCommand, short_help="Draw new observations.")
@bundle_argument
@option(COMPUTED, "-n", "--num-samples", type=click.IntRange(min=1), default=64, help="Number of samples.")
@seed_option(0)
@option(
    COMPUTED,
    "--y",
    help="Label, for a conditional model: a number, a class name, or `each` for equally many samples of every class.",
)
@option(
    COMPUTED,
    "--component",
    help="Component, for a mixture: a number, or `each` for equally many samples of every component.",
)
@option(
    COMPUTED,
    "--arguments",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Arguments that prior and likelihood of a program by its sites read: a .npz file with -n rows of each.",
)
@out_option(".png", ".npy", ".npz")
@json_option
@with_model(by_site.generate)
def generate(
    model: Model, num_samples: int, seed: int, y: str | None, component: str | None, out: Path, as_json: bool
) -> None:
    """Draw latents from the prior and decode them. With `each`, a picture has a line for every class or component.

    Of a program by its sites what comes out are the parameters and the mean of each observed site, as of `decode`.

    \b
    Examples:
      vae-run generate models/digits-mlp -n 24 --seed 0 --out samples.png
      vae-run generate models/digits-mlp -n 1000 --seed 1 --out samples.npy
      vae-run generate models/mnist-conditional -n 80 --y each --out classes.png
    """
    if y == component == "each":
        raise InputError("--y each and --component each were both given; give one of them")
    if model.num_classes and y is None:
        raise InputError(
            f"this model sees labels, integers from 0 to {model.num_classes - 1}; give --y, or --y each for all of them"
        )
    num_components = model.manifest.model.num_components
    dataset = model.manifest.dataset
    labels = _shares("--y", y, num_samples, model.num_classes, () if dataset is None else dataset.class_names)
    components = _shares("--component", component, num_samples, num_components)
    loc_img = model.generate(num_samples, seed, y=labels, component=components)
    if out.suffix.lower() == ".png":
        rows = model.num_classes if y == "each" else num_components if component == "each" else None
        save_picture(out, loc_img, model.data_shape, num_samples // rows if rows else _GRID_COLUMNS)
    else:
        save_rows(out, loc_img=loc_img)
    text = f"{out}: {num_samples} samples, seed {seed}, on {model.provider}"
    print_result(as_json, text, out=out, written=num_samples, seed=seed, provider=model.provider)


@click.command(cls=SectionedCommand, short_help="Decode lines between pairs of observations.")
@bundle_argument
@inputs_argument
@_steps_option(8)
@y_option
@labels_option
@out_option(".png", ".npy", ".npz")
@json_option
@with_model(_ONE_LATENT)
def interpolate(
    model: Model,
    inputs: tuple[Path, ...],
    y: int | None,
    labels: Path | None,
    steps: int,
    out: Path,
    as_json: bool,
) -> None:
    """Decode points on the straight line between the posterior means of two observations, for each pair.

    The first two rows of all inputs are a pair, the next two another, and so on: give two images, or a file with an
    even number of rows. A .png shows the first 16 pairs, one a line: first observation, decoded points, second
    observation. The other formats hold loc_img, shape (pairs, steps, data_dim).

    \b
    Examples:
      vae-run interpolate models/digits-mlp models/digits-mlp/reference.npz --out lines.png
      vae-run interpolate models/digits-mlp models/digits-mlp/reference.npz --steps 5 --out lines.npy
    """
    rows = open_observations(inputs, model.manifest, y, labels)
    if rows.count % 2:
        raise InputError(f"interpolate takes pairs, so an even number of rows, got {rows.count}")
    if rows.y is not None and not np.array_equal(rows.y[::2], rows.y[1::2]):
        pair = int(np.flatnonzero(rows.y[::2] != rows.y[1::2])[0])
        raise InputError(
            f"both rows of a pair must have the same label, got {rows.y[2 * pair]} and {rows.y[2 * pair + 1]} for pair "
            f"{pair}; give --y"
        )
    pairs = rows.count // 2

    def lines(x: FloatArray, labels_of_x: NDArray[np.int64] | None) -> FloatArray:
        return model.interpolate(x[::2], x[1::2], steps, y=None if labels_of_x is None else labels_of_x[::2])

    if out.suffix.lower() == ".png":
        x, y_of_x = rows.first(2 * _MAX_LINES_SHOWN)
        pairs = len(x) // 2
        seen, _ = model.observations(x, y_of_x)
        shown = np.concatenate([seen[::2, None], lines(x, y_of_x), seen[1::2, None]], axis=1)
        save_picture(out, shown.reshape(-1, x.shape[1]), model.data_shape, steps + 2)
    else:
        with rows_file(out, pairs) as append, progress(rows.count, "interpolating") as advance:
            for x, y_of_x in rows.batches(2 * _LINES_BLOCK_ROWS):
                append(loc_img=lines(x, y_of_x))
                advance(len(x))
    text = f"{out}: {_count_text(pairs, rows.count // 2, 'pairs')}, {steps} steps each, on {model.provider}"
    print_result(as_json, text, out=out, pairs=rows.count // 2, written=pairs, steps=steps, provider=model.provider)


@click.command(cls=SectionedCommand, short_help="Decode while one dimension of z varies.")
@bundle_argument
@inputs_argument
@option(COMPUTED, "--dim", "dims", type=click.IntRange(min=0), multiple=True, help="Dimension of z; can be repeated.")
@option(COMPUTED, "--span", default="-3,3", help="First and last value of the dimension.")
@_steps_option(9)
@y_option
@labels_option
@out_option(".png", ".npy", ".npz")
@json_option
@with_model(_ONE_LATENT)
def traverse(
    model: Model,
    inputs: tuple[Path, ...],
    y: int | None,
    labels: Path | None,
    dims: tuple[int, ...],
    span: str,
    steps: int,
    out: Path,
    as_json: bool,
) -> None:
    """Decode each observation's posterior mean with one dimension of z set to each value of a span.

    Default of --dim: the active units for these observations (`Model.active_units`); for a single observation the 8
    dimensions with the smallest z_scale, which say most about it. A .png has a line for each dimension of each
    observation, with the observation at the left: as many observations as fit into 16 lines, at least one. The other
    formats hold loc_img, shape (rows, dims, steps, data_dim); a .npz also dims and span.

    \b
    Examples:
      vae-run traverse models/digits-mlp models/digits-mlp/reference.npz --dim 23 --dim 29 --out dims.png
      vae-run traverse models/digits-mlp models/digits-mlp/reference.npz --dim 23 --span -2,2 --steps 5 --out dims.npz
    """
    values = _values(span, steps)
    rows = open_observations(inputs, model.manifest, y, labels)
    chosen = dims or _default_dims(model, rows)

    def lines(x: FloatArray, labels_of_x: NDArray[np.int64] | None) -> FloatArray:
        return np.stack([model.traverse(x, dim, values, y=labels_of_x) for dim in chosen], axis=1)

    count = rows.count
    if out.suffix.lower() == ".png":
        x, y_of_x = rows.first(max(1, _MAX_LINES_SHOWN // len(chosen)))
        count = len(x)
        seen, _ = model.observations(x, y_of_x)
        own = np.repeat(seen[:, None, None], len(chosen), axis=1)
        shown = np.concatenate([own, lines(x, y_of_x)], axis=2)
        save_picture(out, shown.reshape(-1, x.shape[1]), model.data_shape, steps + 1)
    else:
        others = {"dims": np.array(chosen), "span": values}
        with rows_file(out, count, others) as append, progress(count, "traversing") as advance:
            for x, y_of_x in rows.batches(_LINES_BLOCK_ROWS):
                append(loc_img=lines(x, y_of_x))
                advance(len(x))
    text = f"{out}: {_count_text(count, rows.count)}, dimensions {', '.join(map(str, chosen))}, on {model.provider}"
    record = {"rows": rows.count, "written": count, "dims": chosen, "span": values.tolist()}
    print_result(as_json, text, out=out, **record, provider=model.provider)


def _shares(
    name: str, value: str | None, count: int, num_choices: int, names: Sequence[str] = ()
) -> NDArray[np.int64] | None:
    """Return the class or component of each sample: the same for all, or equally many of each; `None` without one."""
    if value is None:
        return None
    if value in names:
        return np.full(count, names.index(value))
    if value != "each":
        try:
            return np.full(count, int(value))
        except ValueError as error:
            known = f", one of {', '.join(names)}" if names else ""
            raise InputError(f"{name} must be an integer{known}, or each, got {value!r}") from error
    if num_choices == 0:
        raise InputError(f"{name} each: this model has nothing to choose from; leave {name} out")
    if count % num_choices:
        raise InputError(f"{name} each needs -n to be a multiple of {num_choices}, got {count}")
    return np.repeat(np.arange(num_choices), count // num_choices)


def _values(span: str, steps: int) -> FloatArray:
    try:
        first, last = (float(end) for end in span.split(","))
    except ValueError as error:
        raise InputError(f"--span must be two numbers with a comma between, like -3,3, got {span!r}") from error
    if not (math.isfinite(first) and math.isfinite(last)):
        raise InputError(f"--span must be finite, got {span!r}")
    return np.linspace(first, last, steps, dtype=np.float32)


def _default_dims(model: Model, rows: Rows) -> tuple[int, ...]:
    """Return the dimensions that `traverse` varies without --dim."""
    x, y = rows.first(rows.count)
    if rows.count == 1:
        narrowest = np.argsort(model.encode(x, y=y).z_scale[0], kind="stable")[:_DEFAULT_DIMS_OF_ONE_ROW]
        return tuple(sorted(narrowest.tolist()))
    active = np.flatnonzero(model.active_units(x, y=y))
    if active.size == 0:
        raise InputError("no dimension of the posterior mean varies over these rows; choose one with --dim")
    return tuple(active.tolist())
