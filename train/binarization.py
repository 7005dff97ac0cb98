"""Grey values made 0 or 1."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import Binarize
from .device import forked_rng

_SEED = 0


def binarize(images: Tensor, how: Binarize) -> Tensor:
    """Return the images as `how` says, values in [0, 1] as before.

    Args:
        images: Values in [0, 1], any shape.
        how: `none` returns them as they are; `threshold` is 1 above one half; `stochastic` draws 0 or 1 from PyTorch's
            generator, with the grey value as the probability of 1.
    """
    if how == "threshold":
        return (images > 0.5).to(images.dtype)
    return torch.bernoulli(images) if how == "stochastic" else images


def binarize_once(images: Tensor, how: Binarize) -> Tensor:
    """Return `binarize(images, how)` of a fixed seed, so that test sets compare. PyTorch's generators stay."""
    with forked_rng(images.device):
        torch.manual_seed(_SEED)
        return binarize(images, how)
