"""What a file or a folder holds, opened."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DatasetError
from .rows import Rows

_LARGEST_LABEL = 2**63 - 1


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Observations, with their labels where those were asked for.

    Args:
        path: The file or the folder.
        rows: The observations, shape `(num_rows, *data_shape)`.
        labels: Their classes, int64 from 0, shape `(num_rows,)`.
        class_names: The classes' names, in the order of their numbers; empty where the source has none.
    """

    path: Path
    rows: Rows
    labels: Tensor | None = None
    class_names: tuple[str, ...] = ()


def check_labels_of(path: Path, labels: NDArray[Any], num_rows: int) -> Tensor:
    """Return labels as int64.

    Args:
        path: The file that holds them.
        labels: As it holds them.
        num_rows: How many there must be.

    Raises:
        DatasetError: Their number is another one, or one of them is no integer, negative, or too large; the message
            names the row.
    """
    if labels.shape != (num_rows,):
        raise DatasetError(f"{path} must hold a label for each of {num_rows} rows, got labels of shape {labels.shape}")
    if labels.dtype.kind not in "iu":
        row, what = 0, "save them as integers"
        if labels.dtype.kind == "f":
            broken = np.flatnonzero(labels != np.floor(labels))  # NaN is equal to nothing
            row = int(broken[0]) if broken.size else 0
            what += "" if broken.size else ", with y.astype(int)"
        raise DatasetError(
            f"{path}: labels must be integers, got {labels[row]!s} in row {row} (counted from 0), dtype "
            f"{labels.dtype}; {what}"
        )
    for what, wrong in (("be negative", labels < 0), (f"be above {_LARGEST_LABEL}", labels > _LARGEST_LABEL)):
        if wrong.any():
            row = int(np.argmax(wrong))
            raise DatasetError(f"{path}: labels must not {what}, got {labels[row]} in row {row} (counted from 0)")
    return torch.from_numpy(labels.astype(np.int64))
