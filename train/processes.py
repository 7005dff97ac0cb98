"""Several processes that fit one model: each takes a part of every batch, and all make the same step.

`torchrun --nproc-per-node 2 -m train` starts them; `joined` finds the others. The first process, of rank 0, has the
single process's order of images and alone writes, evaluates and decides. The others have the weights, and noise of
their own. A process that is alone has rank 0 of 1, and nothing below costs it anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from .config import MAX_SEED
from .errors import ConfigError, FirstFailedError

_Result = TypeVar("_Result")

_CPU = torch.device("cpu")
_SEED_STRIDE = 2_654_435_761  # odd, so that no two ranks have the same seed; about 2**32 divided by the golden ratio


class Processes:
    """What the processes of one training do together; a collective call must be made by all, in the same order.

    Args:
        rank: This process's number, from 0.
        world_size: How many there are.
        device: Where this one trains.
        group: A gloo group of all of them, beside the default group, which is the device's own; `None` where this
            process is alone.

    Attributes:
        rank: See above.
        world_size: See above.
        device: See above.
    """

    def __init__(
        self,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device = _CPU,
        group: distributed.ProcessGroup | None = None,
    ) -> None:
        self.rank, self.world_size, self.device = rank, world_size, device
        self._group = group
        self._asked: tuple[Tensor, Any] | None = None

    @property
    def is_alone(self) -> bool:
        """Whether there is no group, so that nothing is to be agreed on."""
        return self._group is None

    @property
    def is_first(self) -> bool:
        """Whether this process writes, evaluates and decides."""
        return self.rank == 0

    def seed_of_noise(self, seed: int) -> int:
        """Return the seed of this process's noise: `seed` in the first, (seed + 2654435761 rank) mod 2**32 in all."""
        return (seed + _SEED_STRIDE * self.rank) % (MAX_SEED + 1)

    def shard(self, indices: Tensor) -> Tensor:
        """Return this process's part of a batch; no two processes have the same index, and together they have all."""
        return indices if self.world_size == 1 else indices[self.rank :: self.world_size]

    def check_batches(self, num_images: int, batch_size: int) -> None:
        """Raise `ConfigError` where a batch of an epoch would leave a process without images."""
        last = num_images % batch_size or batch_size
        if min(batch_size, last) < self.world_size:
            raise ConfigError(
                f"batch_size {batch_size} leaves {last} of {num_images} images in the last batch of an epoch, too few "
                f"for {self.world_size} processes; choose another batch_size (--batch-size)"
            )

    def shared(self, vae: nn.Module, loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return `loss`, so that `backward` sums its gradients over the processes.

        Args:
            vae: Whose parameters `loss` depends on, the same in all processes; its buffers follow the first process's.
            loss: Of a batch, summed over its rows.
        """
        if self._group is None:
            return loss
        # Both settings let a network have weights that it does not use. The first alone never packs the gradients in
        # another way than at the beginning, so that three or more processes always add them up in the same order, and
        # a resumed training agrees to the last bit; the second alone never waits for a CUDA device.
        on_cpu = next(vae.parameters()).device.type == "cpu"
        return nn.parallel.DistributedDataParallel(
            _Loss(vae, loss), find_unused_parameters=on_cpu, static_graph=not on_cpu
        )

    def backward(self, loss: Tensor) -> Tensor:
        """Compute the gradients of what `shared` returned, summed over the processes; collective.

        Args:
            loss: Of this process's rows, a scalar.

        Returns:
            The loss of all processes' rows, without gradient; on a CUDA device nothing waits for it.
        """
        if self._group is None:
            loss.backward()
            return loss.detach()
        total = loss.detach().clone()
        work: Any = distributed.all_reduce(total, async_op=True)
        # DistributedDataParallel takes the mean over the processes.
        loss.backward(torch.full_like(loss, self.world_size))
        work.wait()
        return total

    def mean(self, rows: Tensor) -> Tensor:
        """Return the mean over the rows of all processes; collective.

        Args:
            rows: This process's, shape `(rows, ...)`.

        Returns:
            Shape `(...)`. Its gradient is that of this process's own mean: times the number of its rows, and summed
            over the processes, it is the gradient of the sum over all rows.
        """
        own = rows.mean(0)
        if self._group is None:
            return own
        total = torch.cat([rows.detach().sum(0).flatten(), rows.new_tensor([len(rows)])])
        distributed.all_reduce(total)
        return own + ((total[:-1] / total[-1]).view_as(own) - own).detach()

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is set in one of the processes, or was at a last `any_before`; collective."""
        if self._group is None:
            return flag
        before = self.any_before(flag)
        return self._answer() or before

    def any_before(self, flag: bool) -> bool:
        """Return whether `flag` was set in one of the processes at the call before, which is not waited for long.

        A process that is alone gets its own flag at once; the first of several calls returns `False`. Collective.
        """
        if self._group is None:
            return flag
        before = self._answer()
        flags = torch.tensor([float(flag)])
        self._asked = flags, distributed.all_reduce(flags, group=self._group, async_op=True)
        return before

    def _answer(self) -> bool:
        """Wait for the last question, and forget it."""
        if self._asked is None:
            return False
        (flags, work), self._asked = self._asked, None
        work.wait()
        return bool(flags.item())

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensors of all processes, by rank; collective.

        Args:
            tensor: On the CPU, of the same shape and type in all.
        """
        if self._group is None:
            return [tensor]
        gathered = [torch.empty_like(tensor) for _ in range(self.world_size)]
        distributed.all_gather(gathered, tensor, group=self._group)
        return gathered

    def from_first(self, action: Callable[[], _Result]) -> _Result:
        """Return what `action` returns in the first process, which alone calls it; collective.

        Raises:
            FirstFailedError: It failed there; the first process itself raises the error.
        """
        if self._group is None:
            return action()
        outcome: list[Any] = [False, None]
        if self.is_first:
            try:
                outcome = [True, action()]
            except BaseException:
                with contextlib.suppress(RuntimeError):  # where the others are gone as well, this is what to report
                    distributed.broadcast_object_list(outcome, group=self._group)
                raise
        distributed.broadcast_object_list(outcome, group=self._group)
        succeeded, result = outcome
        if not succeeded:
            raise FirstFailedError("process 0 failed; its message says why")
        return result

    def first_ahead(self, action: Callable[[], _Result]) -> _Result:
        """Return what `action` returns here; the others call it when the first has finished, as for a download.

        Raises:
            FirstFailedError: It failed in the first process.
        """
        results: list[_Result] = []
        self.from_first(lambda: results.append(action()))
        return results[0] if results else action()


ALONE = Processes()
"""A training in a single process."""


class _Loss(nn.Module):
    """A loss as a module, which is what `DistributedDataParallel` takes."""

    def __init__(self, vae: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.vae = vae
        self._loss = loss
        # DistributedDataParallel prints a warning where it looks for unused parameters and finds none.
        on_cpu = next(vae.parameters()).device.type == "cpu"
        self.unused = nn.Parameter(torch.zeros(())) if on_cpu else None

    def forward(self, *batch: Tensor) -> Tensor:
        return self._loss(*batch)
