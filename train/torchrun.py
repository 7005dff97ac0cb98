"""Joining the processes that `torchrun` started."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
from collections.abc import Iterator
from typing import Any

from torch import distributed

from .device import select_device
from .errors import ProcessError
from .processes import Processes

_STEP_TIMEOUT = dt.timedelta(minutes=10)
_FIRST_TIMEOUT = dt.timedelta(days=1)
"""The others wait for the first process while it evaluates; with thousands of particles that takes hours."""

_OF_A_LOST_CONNECTION = ("gloo", "Connection closed", "Connection reset", "Broken pipe", "NCCL")


@contextlib.contextmanager
def joined(cuda: bool = False) -> Iterator[Processes]:
    """Join the other processes that `torchrun` started; without it, or where it started one, this one is alone.

    Args:
        cuda: Whether each process trains on a CUDA device of its own, by NCCL, or all on the CPU, by gloo.

    Raises:
        DeviceError: There are too few CUDA devices.
        ProcessError: The environment is not one of torchrun, the others were not found, or one was lost.
    """
    rank, world_size = _rank_and_world_size()
    if world_size == 1:
        yield Processes(device=select_device(cuda))
        return
    local_rank = _number("LOCAL_RANK")
    device = select_device(cuda, local_rank, max(_number("LOCAL_WORLD_SIZE"), local_rank + 1))
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
        group: Any = distributed.new_group(backend="gloo", timeout=_FIRST_TIMEOUT)
        yield Processes(rank, world_size, device, group)
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _OF_A_LOST_CONNECTION):
            raise
        raise ProcessError(
            f"another of the {world_size} processes was killed or failed, and so this one ends; start all of them "
            "again with --resume, or let torchrun do so with --max-restarts 3"
        ) from error
    finally:
        distributed.destroy_process_group()


def _store() -> Any:
    """Return where the processes leave their addresses for each other.

    torchrun keeps one store over its restarts, in which addresses of killed processes are still found. On one machine
    the number of restarts tells them apart. Several machines count restarts apart; there torchrun needs
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its environment, and makes a new store each time.
    """
    untyped: Any = distributed
    store, _, world_size = next(iter(untyped.rendezvous("env://", timeout=_STEP_TIMEOUT)))
    if _number("LOCAL_WORLD_SIZE") < world_size:
        return store
    return untyped.PrefixStore(f"start {_number('TORCHELASTIC_RESTART_COUNT')}", store)


def this_process() -> str:
    """Return what an error begins with, so that the same one from several processes can be told apart."""
    rank, world_size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    return "" if rank == "0" else f"process {rank} of {world_size}: "


def _rank_and_world_size() -> tuple[int, int]:
    """Return what torchrun's environment says, or 0 and 1 without it.

    Raises:
        ProcessError: The environment is not one of torchrun.
    """
    if "WORLD_SIZE" not in os.environ:
        return 0, 1
    rank, world_size = _number("RANK"), _number("WORLD_SIZE")
    if world_size > 1 and "MASTER_ADDR" not in os.environ:
        raise ProcessError(
            f"WORLD_SIZE is {world_size} and MASTER_ADDR is not set; start the processes with torchrun, or unset "
            "WORLD_SIZE for a single one"
        )
    return rank, world_size


def _number(name: str) -> int:
    text = os.environ.get(name, "1" if name.endswith("WORLD_SIZE") else "0")
    if not text.isdecimal():
        raise ProcessError(
            f"{name} must be a number as torchrun sets it, got {text!r}; start with torchrun or unset it"
        )
    return int(text)
