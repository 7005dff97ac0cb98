"""A loss that is no number ends a training at once, and says at which step."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import DivergedError

_ON_A_DEVICE = 100


class FiniteLosses:
    """Looks at the losses of a training: on the CPU at each, on a device that must be waited for at 100 together.

    Args:
        device: Where the losses are.
    """

    def __init__(self, device: torch.device) -> None:
        self._every = 1 if device.type == "cpu" else _ON_A_DEVICE
        self._losses: list[Tensor] = []
        self._steps: list[tuple[int, float]] = []

    def add(self, loss: Tensor, step: int, learning_rate: float) -> None:
        """Take note of a step's loss.

        Raises:
            DivergedError: This one, or one before it, is NaN or infinite.
        """
        self._losses.append(loss)
        self._steps.append((step, learning_rate))
        if len(self._losses) == self._every:
            self.check()

    def check(self) -> None:
        """Look at those that were not looked at yet.

        Raises:
            DivergedError: One is NaN or infinite; the first such is named.
        """
        if not self._losses:
            return
        losses = torch.stack(self._losses).tolist()
        for loss, (step, learning_rate) in zip(losses, self._steps, strict=True):
            if not -torch.inf < loss < torch.inf:
                raise DivergedError(
                    f"the loss became {loss} at step {step}, learning rate {learning_rate:g}; the last checkpoint is "
                    "from before it. Begin another run with a lower learning rate (--learning-rate), a slower start "
                    "(--lr-warmup 5) or a bounded gradient (--clip-norm 100)"
                )
        self._losses.clear()
        self._steps.clear()
