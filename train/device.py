"""The device to train on, the one asked for or an error; its random generator, and how it multiplies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from .errors import DeviceError


def select_device(cuda: bool, index: int | None = None, count: int = 1) -> torch.device:
    """Return the CUDA device if `cuda`, else the CPU.

    Args:
        cuda: Whether CUDA was asked for.
        index: Which device, and the process's from now on; without it the process's present one.
        count: How many devices the processes on this machine need.

    Raises:
        DeviceError: CUDA was asked for and PyTorch sees no CUDA device, or too few.
    """
    if not cuda:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        reason = "this PyTorch is built without CUDA" if torch.version.cuda is None else "PyTorch sees no CUDA device"
        raise DeviceError(f"--cuda was asked for, but {reason}; leave --cuda out to train on the CPU")
    if torch.cuda.device_count() < count:
        raise DeviceError(
            f"--cuda needs a device for each of {count} processes, but PyTorch sees {torch.cuda.device_count()}; start "
            f"as many processes as devices, with --nproc-per-node {torch.cuda.device_count()}"
        )
    if index is not None:
        torch.cuda.set_device(index)
    return torch.device("cuda", torch.cuda.current_device())


def check_bf16(device: torch.device) -> None:
    """Refuse a device that has no instructions for bfloat16, or none that gain: it would take 2 to 10 times as long.

    Of Intel's processors only those with AMX gain: one with AVX512-BF16 alone takes twice as long as in float32.

    Raises:
        DeviceError: It has none, as far as PyTorch tells.
    """
    if device.type == "cuda":
        has = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions do not tell
        is_intel = "Intel" in str(known.get("cpu_name"))
        quick = known.get("amx_bf16") or (known.get("avx512_bf16") and not is_intel)
        has = known.get("architecture") != "x86_64" or bool(quick)
    if not has:
        raise DeviceError(
            f"precision bf16 was asked for, but this {device.type.upper()} has no quick instructions for it, and would "
            "take 2 to 10 times as long as in fp32; leave --precision out"
        )


@contextlib.contextmanager
def forked_rng(device: torch.device) -> Iterator[None]:
    """Leave PyTorch's generators, the CPU's and that of `device`, as they were before the body."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


@contextlib.contextmanager
def float32_products(tf32: bool) -> Iterator[None]:
    """Let CUDA devices round what they multiply to TF32's 10 bits, convolutions included, or forbid it to both.

    PyTorch by itself allows it to convolutions alone. Afterwards the process's choice is as it was.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = tf32
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
