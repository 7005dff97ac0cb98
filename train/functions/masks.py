"""Assignments to the places that a mask names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def index_put(x: Tensor, indices: Sequence[Tensor | None], value: Tensor, accumulate: bool = False) -> Any:
    """Return what `x[mask] = number` makes of x, by a choice at each place.

    ONNX's form of it would first list the places, and how many there are depends on the data. All other assignments
    stay as they are.
    """
    mask = indices[0]
    whole = len(indices) == 1 and mask is not None and mask.dtype == torch.bool and mask.dim() == x.dim()
    if not whole or accumulate or value.dim():
        return NotImplemented
    return torch.where(mask, value.to(x.dtype), x)  # type: ignore[arg-type]  # the mask is a tensor here
