"""The random generators of a training, apart from the process's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from .device import forked_rng
from .errors import RunError
from .processes import Processes


class Generators:
    """Keeps the states of PyTorch's generators between a training's steps: the CPU's, and that of a CUDA device.

    They begin as the process's are now; with several processes the first one's do, and the others have other noise.

    Args:
        device: Where the training is.
        processes: That train together.
        seed: The training's.
    """

    def __init__(self, device: torch.device, processes: Processes, seed: int) -> None:
        self._device, self._processes = device, processes
        if not processes.is_first:
            torch.manual_seed(processes.seed_of_noise(seed))
        self._states = self._now()

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Make these the process's generators in the body, and keep what it makes of them unless it fails."""
        with forked_rng(self._device):
            torch.set_rng_state(self._states[0])
            if self._device.type == "cuda":
                torch.cuda.set_rng_state(self._states[1], self._device)
            yield
            self._states = self._now()

    def state(self) -> dict[str, Tensor]:
        """Return the states of all processes' generators, in the order of the ranks, by number; collective."""
        gathered = zip(*(self._processes.gather(state) for state in self._states), strict=True)
        return {str(number): state for number, state in enumerate(state for own in gathered for state in own)}

    def restore(self, states: Mapping[str, Tensor], processes: int) -> None:
        """Go on with what `state` returned.

        Args:
            states: See `state`.
            processes: How many processes they are from.

        Raises:
            RunError: They are from another number of processes, or from another kind of device.
        """
        here = self._processes.world_size
        if processes != here:
            raise RunError(
                f"the run was begun with {processes} process{'es' * (processes > 1)}, got {here}; go on with as many: "
                f"torchrun --nproc-per-node {processes} -m train --resume"
            )
        own = len(self._states)
        if len(states) != own * here:
            raise RunError(
                f"the checkpoint was made on another kind of device than {self._device}; go on with that one"
            )
        first = own * self._processes.rank
        self._states = [states[str(number)] for number in range(first, first + own)]

    def _now(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        if self._device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self._device))
        return states
