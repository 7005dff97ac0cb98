"""What a training takes observations from: a tensor, or what makes tensors of stored values when asked."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Images(Protocol):
    """Observations by row. A float32 tensor of shape `(num_images, *data_shape)` is one."""

    @property
    def shape(self) -> torch.Size:
        """Shape `(num_images, *data_shape)`."""

    @property
    def device(self) -> torch.device:
        """Where rows come out."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def __getitem__(self, index: slice | Tensor, /) -> Tensor:
        """Return rows, float32 in the model's range, shape `(rows, *data_shape)`; `index` is a slice or int64."""
