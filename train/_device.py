"""The device to train on: the one asked for, or an error."""

from __future__ import annotations

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
