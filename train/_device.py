"""The device to train on, the one asked for or an error; and its random generator."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from train._errors import DeviceError


def select_device(cuda: bool) -> torch.device:
    """Return the CUDA device if `cuda`, else the CPU.

    Raises:
        DeviceError: CUDA was asked for and PyTorch sees no CUDA device.
    """
    if not cuda:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        reason = "this PyTorch is built without CUDA" if torch.version.cuda is None else "PyTorch sees no CUDA device"
        raise DeviceError(f"--cuda was asked for, but {reason}; leave --cuda out to train on the CPU")
    return torch.device("cuda", torch.cuda.current_device())


@contextlib.contextmanager
def forked_rng(device: torch.device) -> Iterator[None]:
    """Leave PyTorch's generators, the CPU's and that of `device`, as they were before the body."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
