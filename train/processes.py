"""Data-parallel training: several processes fit one model, each on its part of every batch.

`torchrun --nproc-per-node 2 -m train` starts them, and `joined` connects them. Process 0 draws the order of the images;
it alone evaluates, writes and prints. All have the same weights, and each has noise of its own. Their steps equal those
of a single process on the whole batch.

Everything that depends on the number of processes is here. The rest of the code calls the methods of a `Processes`
object, which do nothing for a single process.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from .config import MAX_SEED
from .device import select_device
from .errors import ConfigError, FirstFailedError, ProcessError

_Result = TypeVar("_Result")

_CPU = torch.device("cpu")
_SEED_STRIDE = 2_654_435_761  # odd, so that all ranks have different seeds modulo 2**32

_STEP_TIMEOUT = dt.timedelta(minutes=10)
_EVALUATION_TIMEOUT = dt.timedelta(days=1)  # the others wait while process 0 evaluates

_CONNECTION_ERRORS = ("gloo", "Connection closed", "Connection reset", "Broken pipe", "NCCL")


class Processes:
    """A single process. `JoinedProcesses` does the same for several.

    A method called collective must be called by all processes, in the same order.

    Args:
        device: Where this process trains.

    Attributes:
        rank: The number of this process, from 0.
        world_size: The number of processes.
        device: Where this process trains.
    """

    rank = 0
    world_size = 1

    def __init__(self, device: torch.device = _CPU) -> None:
        self.device = device

    @property
    def is_first(self) -> bool:
        """Whether this process evaluates, writes and prints."""
        return self.rank == 0

    def noise_seed(self, seed: int) -> int:
        """Return the seed of this process's noise: (seed + 2654435761 * rank) mod 2**32."""
        return (seed + _SEED_STRIDE * self.rank) % (MAX_SEED + 1)

    def shard(self, indices: Tensor) -> Tensor:
        """Return this process's part of a batch: every `world_size`-th index."""
        return indices

    def batches(self, num_images: int, batch_size: int) -> list[int]:
        """Return the sizes of an epoch's batches.

        A last batch that leaves a process with a single image, or none, joins the one before: the statistics of a
        batch norm need two.

        Raises:
            ConfigError: The batches are smaller than the number of processes.
        """
        sizes = [min(batch_size, num_images - start) for start in range(0, num_images, batch_size)]
        if len(sizes) > 1 and sizes[-1] < min(2 * self.world_size, batch_size):
            sizes[-2:] = [sum(sizes[-2:])]
        if min(sizes, default=batch_size) < self.world_size:
            raise ConfigError(
                f"{num_images} images in batches of {batch_size} are too few for {self.world_size} processes; choose a "
                "larger batch_size (--batch-size), or fewer processes"
            )
        return sizes

    def summing_gradients(self, vae: nn.Module, loss: Callable[..., Tensor]) -> Callable[..., Tensor]:  # noqa: ARG002
        """Return `loss` such that `backward` sums its gradients over the processes.

        Args:
            vae: Holds the parameters of `loss`, equal in all processes; its buffers follow those of process 0.
            loss: Takes a batch, returns the loss summed over its rows.
        """
        return loss

    def backward(self, loss: Tensor) -> Tensor:
        """Compute the gradients of a loss from `summing_gradients`, summed over the processes; collective.

        Args:
            loss: Of this process's rows, a scalar.

        Returns:
            The loss of the rows of all processes, detached; without waiting for a CUDA device.
        """
        loss.backward()
        return loss.detach()

    def mean(self, rows: Tensor) -> Tensor:
        """Return the mean over the rows of all processes; collective.

        Args:
            rows: This process's, shape `(rows, ...)`.

        Returns:
            Shape `(...)`. Its gradient is that of the mean over this process's rows. Multiplied by their number and
            summed over the processes, it is the gradient of the sum over all rows.
        """
        return rows.mean(0)

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is set in any process, or was at the last `any_before`; collective."""
        return flag

    def any_before(self, flag: bool) -> bool:
        """Return whether `flag` was set in any process at the previous call, without waiting; collective.

        The first call returns `False`. A single process gets its own flag at once.
        """
        return flag

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensors of all processes, by rank; collective.

        Args:
            tensor: On the CPU, of the same shape and dtype in all.
        """
        return [tensor]

    def from_first(self, action: Callable[[], _Result]) -> _Result:
        """Call `action` in process 0 and return its result in all; collective.

        Raises:
            FirstFailedError: `action` failed. Process 0 itself raises what `action` raised.
        """
        return action()

    def first_then_others(self, action: Callable[[], _Result]) -> _Result:
        """Call `action` in process 0, then in the others, as for a download; return each one's result; collective.

        Raises:
            FirstFailedError: `action` failed in process 0.
        """
        return action()


class JoinedProcesses(Processes):
    """Several processes, connected by `torch.distributed`; `joined` makes one.

    Args:
        rank: The number of this process, from 0.
        world_size: The number of processes.
        device: Where this process trains.
        group: A gloo group of all processes, for tensors on the CPU; by default the default group.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        device: torch.device = _CPU,
        group: distributed.ProcessGroup | None = None,
    ) -> None:
        super().__init__(device)
        self.rank, self.world_size = rank, world_size
        self._group = group
        self._pending: tuple[Tensor, Any] | None = None  # the flags of the last `any_before`, and its all_reduce

    def shard(self, indices: Tensor) -> Tensor:
        """Return every `world_size`-th index, the first of them at `rank`."""
        return indices[self.rank :: self.world_size]

    def summing_gradients(self, vae: nn.Module, loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Wrap `loss` in `DistributedDataParallel`."""
        # Both settings allow unused weights. On the CPU find_unused_parameters keeps the buckets of gradients, and so
        # the order of additions: a resumed training is the same to the last bit. On CUDA static_graph avoids waiting.
        on_cpu = next(vae.parameters()).device.type == "cpu"
        return nn.parallel.DistributedDataParallel(
            _LossModule(vae, loss), find_unused_parameters=on_cpu, static_graph=not on_cpu
        )

    def backward(self, loss: Tensor) -> Tensor:
        """Compute the gradients, and reduce the loss at the same time."""
        total = loss.detach().clone()
        work: Any = distributed.all_reduce(total, async_op=True)
        loss.backward(torch.full_like(loss, self.world_size))  # DistributedDataParallel divides by it
        work.wait()
        return total

    def mean(self, rows: Tensor) -> Tensor:
        """Reduce the sums and the numbers of rows."""
        own = rows.mean(0)
        total = torch.cat([rows.detach().sum(0).flatten(), rows.new_tensor([len(rows)])])
        distributed.all_reduce(total)
        return own + ((total[:-1] / total[-1]).view_as(own) - own).detach()

    def any(self, flag: bool) -> bool:
        """Reduce the flags and wait for the answer."""
        before = self.any_before(flag)
        return self._answer() or before

    def any_before(self, flag: bool) -> bool:
        """Return the answer of the previous call, and begin to reduce these flags."""
        before = self._answer()
        flags = torch.tensor([float(flag)])
        self._pending = flags, distributed.all_reduce(flags, group=self._group, async_op=True)
        return before

    def _answer(self) -> bool:
        if self._pending is None:
            return False
        (flags, work), self._pending = self._pending, None
        work.wait()
        return bool(flags.item())

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Gather the tensors in all processes."""
        gathered = [torch.empty_like(tensor) for _ in range(self.world_size)]
        distributed.all_gather(gathered, tensor, group=self._group)
        return gathered

    def from_first(self, action: Callable[[], _Result]) -> _Result:
        """Broadcast the result, or that there is none."""
        outcome: list[Any] = [False, None]
        if self.is_first:
            try:
                outcome = [True, action()]
            except BaseException:
                with contextlib.suppress(RuntimeError):  # the others are gone too: report the first error
                    distributed.broadcast_object_list(outcome, group=self._group)
                raise
        distributed.broadcast_object_list(outcome, group=self._group)
        succeeded, result = outcome
        if not succeeded:
            raise FirstFailedError("process 0 failed; its message says why")
        return result

    def first_then_others(self, action: Callable[[], _Result]) -> _Result:
        """Let the others wait for process 0."""
        results: list[_Result] = []
        self.from_first(lambda: results.append(action()))
        return results[0] if results else action()


SINGLE = Processes()
"""A single process on the CPU."""


class _LossModule(nn.Module):
    """A loss as a module, which is what `DistributedDataParallel` takes."""

    def __init__(self, vae: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.vae = vae
        self._loss = loss
        # DistributedDataParallel warns if it looks for unused parameters and finds none.
        on_cpu = next(vae.parameters()).device.type == "cpu"
        self.unused = nn.Parameter(torch.zeros(())) if on_cpu else None

    def forward(self, *batch: Tensor) -> Tensor:
        return self._loss(*batch)


@contextlib.contextmanager
def joined(cuda: bool = False) -> Iterator[Processes]:
    """Connect the processes that `torchrun` started. Without torchrun, or with one process, yield a single one.

    Args:
        cuda: Whether each process trains on a CUDA device of its own (NCCL), or all on the CPU (gloo).

    Raises:
        DeviceError: There are too few CUDA devices.
        ProcessError: The environment is not torchrun's, the processes did not connect, or one was lost.
    """
    rank, world_size = _rank_and_world_size()
    if world_size == 1:
        yield Processes(select_device(cuda))
        return
    local_rank = _from_environment("LOCAL_RANK")
    device = select_device(cuda, local_rank, max(_from_environment("LOCAL_WORLD_SIZE"), local_rank + 1))
    try:
        distributed.init_process_group(
            "nccl" if cuda else "gloo",
            store=_store(),
            rank=rank,
            world_size=world_size,
            timeout=_STEP_TIMEOUT,
            device_id=device if cuda else None,
        )
    except (RuntimeError, ValueError) as error:
        raise ProcessError(f"the {world_size} processes did not find each other: {error}") from error
    try:
        group: Any = distributed.new_group(backend="gloo", timeout=_EVALUATION_TIMEOUT)
        yield JoinedProcesses(rank, world_size, device, group)
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _CONNECTION_ERRORS):
            raise
        raise ProcessError(
            f"another of the {world_size} processes was killed or failed, and so this one ends; start all of them "
            "again with --resume, or let torchrun do so with --max-restarts 3"
        ) from error
    finally:
        distributed.destroy_process_group()


def this_process() -> str:
    """Return a prefix for errors, "process 1 of 2: ", empty in process 0."""
    rank, world_size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    return "" if rank == "0" else f"process {rank} of {world_size}: "


def _store() -> Any:
    """Return the store in which the processes find each other's addresses.

    torchrun keeps one store over its restarts, with the addresses of killed processes in it. On one machine the number
    of restarts tells them apart. Several machines count restarts separately; torchrun then needs
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment, which makes a new store each time.
    """
    untyped: Any = distributed
    store, _, world_size = next(iter(untyped.rendezvous("env://", timeout=_STEP_TIMEOUT)))
    if _from_environment("LOCAL_WORLD_SIZE") < world_size:
        return store
    return untyped.PrefixStore(f"start {_from_environment('TORCHELASTIC_RESTART_COUNT')}", store)


def _rank_and_world_size() -> tuple[int, int]:
    if "WORLD_SIZE" not in os.environ:
        return 0, 1
    rank, world_size = _from_environment("RANK"), _from_environment("WORLD_SIZE")
    if world_size > 1 and "MASTER_ADDR" not in os.environ:
        raise ProcessError(
            f"WORLD_SIZE is {world_size} and MASTER_ADDR is not set; start the processes with torchrun, or unset "
            "WORLD_SIZE for a single one"
        )
    return rank, world_size


def _from_environment(name: str) -> int:
    text = os.environ.get(name, "1" if name.endswith("WORLD_SIZE") else "0")
    if not text.isdecimal():
        raise ProcessError(
            f"{name} must be a number as torchrun sets it, got {text!r}; start with torchrun or unset it"
        )
    return int(text)
