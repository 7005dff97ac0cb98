"""Which rows are for what: drawn by a seed of their own."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..errors import DatasetError


def split(count: int, fractions: tuple[float, ...], seed: int, path: Path | str) -> tuple[Tensor, ...]:
    """Return the rows to train with, and those of each fraction: disjoint, and together all.

    A permutation is drawn from PyTorch's CPU generator; the fractions are its last parts. Each part is in the order of
    the rows.

    Args:
        count: Number of rows.
        fractions: Of `count`, each 0 for none; any other is of at least one row.
        seed: Of the permutation.
        path: Where the rows are from, for the message.

    Returns:
        Numbers of rows, int64, ascending; one tensor more than there are fractions.

    Raises:
        DatasetError: No row is left to train with.
    """
    sizes = [max(1, round(count * fraction)) if fraction else 0 for fraction in fractions]
    if count <= sum(sizes):
        raise DatasetError(
            f"{path} has {count} rows, of which {sum(sizes)} would be kept to test or watch with; give more"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return tuple(part.sort().values for part in order.split([count - sum(sizes), *sizes]))
