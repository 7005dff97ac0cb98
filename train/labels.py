"""Labels: that they are there where they must be, and are what they should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import DatasetError, LabelError

_LARGEST_LABEL = 2**63 - 1


def check_labels(labels: Tensor | None, num_classes: int) -> None:
    """Check that labels are given to a conditional model and to no other.

    Raises:
        LabelError: They are missing, or not wanted.
    """
    if (labels is None) == (num_classes > 0):
        made_for = f"labels y, shape (batch,), of {num_classes} classes" if num_classes else "no labels"
        raise LabelError(f"this model was made for {made_for}, got {'none' if labels is None else 'y'}")


def check_label_values(labels: Tensor | None, num_images: int, num_classes: int) -> None:
    """Check labels with their values, which a network cannot: one that is out of range would look like none.

    Args:
        labels: Those of a data set, or `None`.
        num_images: How many there must be.
        num_classes: How many classes the model was made for, 0 for none.

    Raises:
        LabelError: They are missing or not wanted, or their number, dtype or range is another one.
    """
    check_labels(labels, num_classes)
    if labels is None:
        return
    if labels.dtype != torch.int64 or labels.shape != (num_images,):
        raise LabelError(f"labels must be int64 of shape ({num_images},), got {labels.dtype} of {tuple(labels.shape)}")
    if num_images and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise LabelError(f"labels must be from 0 to {num_classes - 1}, got {int(labels.min())} to {int(labels.max())}")


def stored_labels(path: Path, labels: NDArray[Any], num_rows: int) -> Tensor:
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
