"""`generate`, `interpolate` and `traverse`: what the latent holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..model import Model
from .options import (
    answer,
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
from .outputs import rows_file, save_picture, save_rows
from .rows import Rows, open_observations

FloatArray = NDArray[np.float32]

_COLUMNS = 8
_LINES_SHOWN = 16
_DIMS_OF_ONE = 8
_ROWS_AT_ONCE = 64


def _steps_option(default: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option("--steps", type=click.IntRange(min=2), default=default, help="Images in a line.")


@click.command(short_help="Draw new observations.")
@bundle_argument
@click.option("-n", "--num-samples", "num_samples", type=click.IntRange(min=1), default=64, help="How many.")
@seed_option(0)
@click.option(
    "--y", help="Label, for a conditional model: a number or a class's name; each for a share of every class."
)
@click.option("--component", help="Component, for a mixture; each for an equal share of every one.")
@out_option(".png", ".npy", ".npz")
@json_option
@runs_a_model
def generate(
    model: Model, num_samples: int, seed: int, y: str | None, component: str | None, out: Path, as_json: bool
) -> None:
    """Draw from the prior and decode; with `each`, a picture has a row for every class or component.

    \b
    Examples:
      vae-run generate models/digits-mlp -n 24 --seed 0 --out samples.png
      vae-run generate models/digits-mlp -n 1000 --seed 1 --out samples.npy
      vae-run generate models/mnist-conditional -n 80 --y each --out classes.png
    """
    if y == component == "each":
        raise InputError("--y each and --component each were both given; a picture has rows of one of them")
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
        save_picture(out, loc_img, model.data_shape, num_samples // rows if rows else _COLUMNS)
    else:
        save_rows(out, loc_img=loc_img)
    text = f"{out}: {num_samples} samples, seed {seed}, on {model.provider}"
    answer(as_json, text, out=out, written=num_samples, seed=seed, provider=model.provider)


@click.command(short_help="Decode the lines between observations.")
@bundle_argument
@inputs_argument
@y_option
@labels_option
@_steps_option(8)
@out_option(".png", ".npy", ".npz")
@json_option
@runs_a_model
def interpolate(
    model: Model,
    inputs: tuple[Path, ...],
    y: int | None,
    labels: Path | None,
    steps: int,
    out: Path,
    as_json: bool,
) -> None:
    """Decode the straight line between the posterior means of two observations, for each pair of them.

    The first two rows of all inputs are a pair, the next two another one, and so on: two pictures, or a file with an
    even number of rows. A .png shows the first 16 pairs, a pair a row: its first observation, the line, its second
    observation. The others hold loc_img, shape (pairs, steps, data_dim).

    \b
    Examples:
      vae-run interpolate models/digits-mlp models/digits-mlp/reference.npz --out lines.png
      vae-run interpolate models/digits-mlp models/digits-mlp/reference.npz --steps 5 --out lines.npy
    """
    rows = open_observations(inputs, model.manifest.model, y, labels, model.manifest.preprocessing)
    if rows.count % 2:
        raise InputError(f"interpolate takes pairs, an even number of rows, got {rows.count}")
    if rows.y is not None and not np.array_equal(rows.y[::2], rows.y[1::2]):
        pair = int(np.flatnonzero(rows.y[::2] != rows.y[1::2])[0])
        raise InputError(
            f"the ends of a pair need one label, got {rows.y[2 * pair]} and {rows.y[2 * pair + 1]} for pair {pair}; "
            "give --y"
        )
    pairs = rows.count // 2

    def lines(x: FloatArray, labels_of_x: NDArray[np.int64] | None) -> FloatArray:
        return model.interpolate(x[::2], x[1::2], steps, y=None if labels_of_x is None else labels_of_x[::2])

    if out.suffix.lower() == ".png":
        x, y_of_x = rows.first(2 * _LINES_SHOWN)
        pairs = len(x) // 2
        seen, _ = model.observations(x, y_of_x)
        shown = np.concatenate([seen[::2, None], lines(x, y_of_x), seen[1::2, None]], axis=1)
        save_picture(out, shown.reshape(-1, x.shape[1]), model.data_shape, steps + 2)
    else:
        with rows_file(out, pairs) as append, progress(rows.count, "interpolating") as advance:
            for x, y_of_x in rows.batches(2 * _ROWS_AT_ONCE):
                append(loc_img=lines(x, y_of_x))
                advance(len(x))
    text = f"{out}: {of_all(pairs, rows.count // 2, 'pairs')}, {steps} steps each, on {model.provider}"
    answer(as_json, text, out=out, pairs=rows.count // 2, written=pairs, steps=steps, provider=model.provider)


@click.command(short_help="Decode along single dimensions of z.")
@bundle_argument
@inputs_argument
@y_option
@labels_option
@click.option("--dim", "dims", type=click.IntRange(min=0), multiple=True, help="Dimension of z; can be given again.")
@click.option("--span", default="-3,3", help="First and last value, with a comma between.")
@_steps_option(9)
@out_option(".png", ".npy", ".npz")
@json_option
@runs_a_model
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
    """Decode each observation's posterior mean with one dimension of z set to the values of a span.

    Without --dim: those that the model uses for these observations (`Model.active_units`); of a single observation
    the 8 whose posterior is narrowest, because those say most about it. A .png has a row for each dimension of each
    observation, which itself stands at the left; as many observations as fit into 16 rows, at least one. The others
    hold loc_img, shape (rows, dims, steps, data_dim); a .npz also dims and span.

    \b
    Examples:
      vae-run traverse models/digits-mlp models/digits-mlp/reference.npz --dim 23 --dim 29 --out dims.png
      vae-run traverse models/digits-mlp models/digits-mlp/reference.npz --dim 23 --span -2,2 --steps 5 --out dims.npz
    """
    values = _values(span, steps)
    rows = open_observations(inputs, model.manifest.model, y, labels, model.manifest.preprocessing)
    chosen = dims or _telling_dims(model, rows)

    def lines(x: FloatArray, labels_of_x: NDArray[np.int64] | None) -> FloatArray:
        return np.stack([model.traverse(x, dim, values, y=labels_of_x) for dim in chosen], axis=1)

    count = rows.count
    if out.suffix.lower() == ".png":
        x, y_of_x = rows.first(max(1, _LINES_SHOWN // len(chosen)))
        count = len(x)
        seen, _ = model.observations(x, y_of_x)
        own = np.repeat(seen[:, None, None], len(chosen), axis=1)
        shown = np.concatenate([own, lines(x, y_of_x)], axis=2)
        save_picture(out, shown.reshape(-1, x.shape[1]), model.data_shape, steps + 1)
    else:
        others = {"dims": np.array(chosen), "span": values}
        with rows_file(out, count, others) as append, progress(count, "traversing") as advance:
            for x, y_of_x in rows.batches(_ROWS_AT_ONCE):
                append(loc_img=lines(x, y_of_x))
                advance(len(x))
    text = f"{out}: {of_all(count, rows.count)}, dimensions {', '.join(map(str, chosen))}, on {model.provider}"
    record = {"rows": rows.count, "written": count, "dims": chosen, "span": values.tolist()}
    answer(as_json, text, out=out, **record, provider=model.provider)


def _shares(
    option: str, value: str | None, count: int, num_choices: int, names: Sequence[str] = ()
) -> NDArray[np.int64] | None:
    """Return the choice of each row: one for all, by its name or its number, or an equal share of each."""
    if value is None:
        return None
    if value in names:
        return np.full(count, names.index(value))
    if value != "each":
        try:
            return np.full(count, int(value))
        except ValueError as error:
            known = f", one of {', '.join(names)}" if names else ""
            raise InputError(f"{option} must be an integer{known}, or each, got {value!r}") from error
    if num_choices == 0 or count % num_choices:
        raise InputError(f"{option} each makes equal shares of {num_choices} choices, and -n is {count}")
    return np.repeat(np.arange(num_choices), count // num_choices)


def _values(span: str, steps: int) -> FloatArray:
    try:
        first, last = (float(end) for end in span.split(","))
    except ValueError as error:
        raise InputError(f"--span must be two numbers with a comma between, like -3,3, got {span!r}") from error
    if not (math.isfinite(first) and math.isfinite(last)):
        raise InputError(f"--span must be finite, got {span!r}")
    return np.linspace(first, last, steps, dtype=np.float32)


def _telling_dims(model: Model, rows: Rows) -> tuple[int, ...]:
    """The dimensions to look at where none was named."""
    x, y = rows.first(rows.count)
    if rows.count == 1:
        narrowest = np.argsort(model.encode(x, y=y).z_scale[0], kind="stable")[:_DIMS_OF_ONE]
        return tuple(sorted(narrowest.tolist()))
    active = np.flatnonzero(model.active_units(x, y=y))
    if active.size == 0:
        raise InputError("the posterior means of these rows do not vary in any dimension; give --dim")
    return tuple(active.tolist())
