"""Labels: that they are there where they must be, and are what they should be."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import LabelError


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
