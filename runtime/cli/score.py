"""`score`: how unusual observations are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from ..model import Model
from ..noise import Noise
from .options import (
    BLOCK_ROWS,
    answer,
    bundle_argument,
    inputs_argument,
    json_option,
    labels_option,
    out_option,
    progress,
    runs_a_model,
    seed_option,
    y_option,
)
from .outputs import rows_file
from .rows import Rows, open_observations

_RATE = 0.01


@click.command(short_help="Say how unusual observations are.")
@bundle_argument
@inputs_argument
@y_option
@labels_option
@seed_option(0)
@click.option(
    "--rate",
    type=float,
    help=f"Part of the test images that may be taken for unusual.  [default: {_RATE}, where the bundle knows them]",
)
@out_option(".csv", ".json", ".npz", required=False)
@json_option
@runs_a_model
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
    """Say how unusual each observation is: its ELBO in nats, with reconstruction and KL, against the test images.

    Noise is drawn for 1024 rows at a time. If the bundle does not know how its test images are distributed, no
    observation is called unusual.

    \b
    Examples:
      vae-run score models/digits-mlp models/digits-mlp/reference.npz
      vae-run score models/digits-mlp models/digits-mlp/reference.npz --rate 0.05 --out scores.csv
    """
    known = model.manifest.dataset is not None and model.manifest.dataset.elbo_quantiles
    if known and rate is None:
        rate = _RATE
    limit = None if rate is None else model.threshold(rate)
    rows = open_observations(inputs, model.manifest.model, y, labels, model.manifest.preprocessing)
    parts = list(_scores(model, rows, seed, limit))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if out is not None:
        with rows_file(out, rows.count) as append:
            append(**columns)
    mean = float(columns["elbo"].mean())
    unusual = None if limit is None else int(columns["unusual"].sum())
    answer(
        as_json,
        f"{rows.count} observations, mean ELBO {mean:.2f} nats; how test images are distributed is not known here"
        if limit is None
        else f"{unusual} of {rows.count} observations lie below {limit:.2f} nats, as {rate:g} of the test images do",
        out=out,
        rows=rows.count,
        mean_elbo_nats=mean,
        unusual=unusual,
        limit_nats=limit,
        rate=rate,
        seed=seed,
        provider=model.provider,
    )


def _scores(model: Model, rows: Rows, seed: int, limit: float | None) -> Iterator[dict[str, NDArray[Any]]]:
    stream = Noise(seed)
    with progress(rows.count, "scoring") as advance:
        for x, y in rows.batches(BLOCK_ROWS):
            found = model.score(x, stream, y=y)
            columns: dict[str, NDArray[Any]] = {
                "elbo": found.elbo,
                "reconstruction": found.reconstruction,
                "kl": found.kl,
            }
            yield columns if limit is None else {**columns, "unusual": found.below(limit)}
            advance(len(x))
