"""Binarization of grey values."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import Binarize
from .device import forked_rng

_SEED = 0


def binarize(images: Tensor, how: Binarize) -> Tensor:
    """Binarize images.

    Args:
        images: Values in [0, 1], any shape.
        how: `none` leaves them; `threshold` is 1 above one half; `stochastic` draws 0 or 1 from PyTorch's generator,
            with the grey value as the probability of 1.
    """
    if how == "threshold":
        return (images > 0.5).to(images.dtype)
    return torch.bernoulli(images) if how == "stochastic" else images


def binarize_once(images: Tensor, how: Binarize) -> Tensor:
    """Binarize images with a fixed seed, so that test sets compare; PyTorch's generators stay as they are."""
    with forked_rng(images.device):
        torch.manual_seed(_SEED)
        return binarize(images, how)
