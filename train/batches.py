"""Batches on the device, of images that are there or on the host."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .data import Images
from .processes import ALONE, Processes


def batches(
    images: Images,
    labels: Tensor | None,
    order: Tensor,
    batch_size: int,
    device: torch.device,
    *,
    processes: Processes = ALONE,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield images and labels in the given order, `batch_size` at a time, the last batch maybe smaller.

    Those that are on `device` stay there. Those that are on the host, because the device has no room for all of them,
    go to a CUDA device through pinned memory, so that no copy is waited for.

    Args:
        images: Shape `(num_images, ...)`, on `device` or on the CPU.
        labels: Shape `(num_images,)`, where the images are.
        order: The images' indices, shape `(num_images,)`.
        batch_size: At least 1.
        device: Where the batches shall be.
        processes: That have a part of each batch; this one's comes.
    """
    for batch in order.to(images.device).split(batch_size):
        indices = processes.shard(batch)
        yield _moved(images[indices], device), None if labels is None else _moved(labels[indices], device)


def _moved(batch: Tensor, device: torch.device) -> Tensor:
    if batch.device.type == device.type:
        return batch
    return (batch.pin_memory() if device.type == "cuda" else batch).to(device, non_blocking=True)
