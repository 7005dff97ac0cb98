"""What `score` writes and prints, of models and programs alike."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import Model, Program, Score
from .outputs import rows_file
from .terminal import print_result

DEFAULT_RATE = 0.01


def write_scores(
    model: Model | Program,
    parts: Iterable[tuple[dict[str, NDArray[Any]], Score]],
    rate: float | None,
    seed: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Write the scores of all rows, and say how many rows are anomalous.

    Args:
        model: What scored them.
        parts: The score of each block of rows, behind the columns that stand before it.
        rate: Of the threshold; by default `DEFAULT_RATE`, where the bundle holds quantiles of the test ELBO.
        seed: Of the noise.
        out: File to write; `None` for none.
        as_json: Whether to print an object.

    Raises:
        InputError: `rate` is out of range, or the bundle holds no quantiles.
    """
    has_quantiles = model.manifest.dataset is not None and model.manifest.dataset.elbo_quantiles
    if has_quantiles and rate is None:
        rate = DEFAULT_RATE
    threshold = None if rate is None else model.threshold(rate)
    blocks: list[dict[str, NDArray[Any]]] = []
    for first, score in parts:
        block = {**first, "elbo": score.elbo, "reconstruction": score.reconstruction, "kl": score.kl}
        blocks.append(block if threshold is None else {**block, "anomalous": score.below(threshold)})
    columns = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    rows, mean = len(columns["elbo"]), float(columns["elbo"].mean())
    if out is not None:
        with rows_file(out, rows) as append:
            append(**columns)
    anomalous = None if threshold is None else int(columns["anomalous"].sum())
    print_result(
        as_json,
        f"{rows} rows, mean ELBO {mean:.2f} nats; this bundle holds no quantiles of the test ELBO, "
        "so there is no threshold for anomalous rows"
        if threshold is None or rate is None
        else f"{anomalous} of {rows} rows {'is' if anomalous == 1 else 'are'} anomalous: ELBO below "
        f"{threshold:.2f} nats, the threshold that {100 * rate:g} % of the test rows fall below",
        out=out,
        rows=rows,
        mean_elbo_nats=mean,
        anomalous=anomalous,
        threshold_nats=threshold,
        rate=rate,
        seed=seed,
        provider=model.provider,
    )
