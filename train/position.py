"""How far a training has come."""

from __future__ import annotations

import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .errors import DatasetError
from .processes import ALONE, Processes

_TOTAL, _BEGUN = "position.total", "position.begun"


class Position:
    """Where in which epoch a training is, and what it needs to go on from there.

    Args:
        device: Where the losses are summed.
        processes: That take the same order, which the first of them draws.

    Attributes:
        epoch: Epochs that have come to their end.
        steps: Steps made, those of earlier epochs included.
        seen: Images of the present epoch that a step was made on; 0 between epochs.
    """

    def __init__(self, device: torch.device, processes: Processes = ALONE) -> None:
        self.epoch = self.steps = self.seen = 0
        self._total = torch.zeros((), dtype=torch.float64, device=device)
        self._begun = torch.empty(0, dtype=torch.uint8)  # the CPU's generator at the beginning of the epoch
        self._order: Tensor | None = None
        self._processes = processes

    def order_of(self, num_images: int) -> Tensor:
        """Return the images' indices in the order of the epoch, drawn from the CPU's generator when the epoch begins.

        Raises:
            DatasetError: The epoch was begun with another number of images.
        """
        if self._order is None:
            self._order = self._processes.from_first(lambda: self._drawn(num_images))
        if len(self._order) != num_images:
            raise DatasetError(f"this epoch was begun with {len(self._order)} images, got {num_images}; give the same")
        return self._order

    def _drawn(self, num_images: int) -> Tensor:
        if self.seen == 0:
            self._begun = torch.get_rng_state()
            return torch.randperm(num_images)
        now = torch.get_rng_state()  # restored in the middle of an epoch: drawn again
        torch.set_rng_state(self._begun)
        order = torch.randperm(num_images)
        torch.set_rng_state(now)
        return order

    def advance(self, loss: Tensor, num_images: int) -> None:
        """Count a step on `num_images`, with their summed loss."""
        self._total = self._total + loss
        self.seen += num_images
        self.steps += 1

    def mean_loss(self) -> float:
        """Return the mean loss of the images seen in this epoch; it waits for the device."""
        return float(self._total) / self.seen

    def end_epoch(self) -> None:
        """Count the epoch."""
        self.epoch += 1
        self.seen = 0
        self._total = torch.zeros_like(self._total)
        self._order = None

    def state(self) -> Checkpoint:
        """Return all of it."""
        tensors = {_TOTAL: self._total, _BEGUN: self._begun}
        return Checkpoint(tensors, {"epoch": self.epoch, "steps": self.steps, "seen": self.seen})

    def restore(self, state: Checkpoint) -> None:
        """Go to where `state` was."""
        self.epoch, self.steps, self.seen = (int(state.notes[name]) for name in ("epoch", "steps", "seen"))
        self._total = state.tensors[_TOTAL].to(self._total.device)
        self._begun = state.tensors[_BEGUN]
        self._order = None
