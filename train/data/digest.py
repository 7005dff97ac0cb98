"""Which rows a training has: a number that others do not have."""

from __future__ import annotations

import hashlib

import torch

from ..images import Images
from .dataset import Dataset

_ROWS = 256


def digest_of(dataset: Dataset[Images]) -> str:
    """Return the SHA-256 of a data set's sizes, of up to 256 rows of each part, evenly spread, and of all labels.

    Args:
        dataset: Its rows as the model gets them: another split, scale or order gives another digest.
    """
    digest = hashlib.sha256()
    for images, labels in (
        (dataset.train, dataset.train_labels),
        (dataset.validation, dataset.validation_labels),
        (dataset.test, dataset.test_labels),
    ):
        if images is None:
            continue
        count = min(_ROWS, len(images))
        picked = torch.arange(count) * len(images) // count
        digest.update(f"{tuple(images.shape)}\n".encode())
        digest.update(images[picked.to(images.device)].cpu().contiguous().numpy().tobytes())
        if labels is not None:
            digest.update(labels.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
