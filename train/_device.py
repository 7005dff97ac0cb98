"""The device to train on, the one asked for or an error; its random generator, and how it multiplies."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator

import torch

from train._errors import DeviceError

_SIDE = 512  # of the matrices that show how quick products are


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
    """Refuse a device that gains nothing by bfloat16.

    That a processor has instructions for it says too little: with AVX512-BF16, but without AMX, an Intel Xeon takes
    twice as long as in float32. So a CPU is put to the test, for some hundredths of a second.

    Raises:
        DeviceError: It gains nothing.
    """
    if device.type == "cuda":
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            raise DeviceError(
                "precision bf16 was asked for, but this CUDA device has no instructions for it; leave --precision out"
            )
    elif (times := times_as_long_in_bf16()) >= 1:
        raise DeviceError(
            f"precision bf16 was asked for, but products take this CPU {times:.1f} times as long in it as in fp32; "
            "leave --precision out"
        )


def times_as_long_in_bf16() -> float:
    """Return how many times as long as in float32 a product takes in bfloat16 on the CPU, each at its best of seven."""
    seconds = dict.fromkeys((torch.float32, torch.bfloat16), math.inf)
    matrices = {dtype: torch.ones(_SIDE, _SIDE, dtype=dtype) for dtype in seconds}
    for _ in range(7):
        for dtype, matrix in matrices.items():
            start = time.perf_counter()
            torch.mm(matrix, matrix)
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    return seconds[torch.bfloat16] / seconds[torch.float32]


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
