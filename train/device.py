"""Devices, and PyTorch's global state: random generators, TF32, MKL's kernels."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch

from .errors import DeviceError

_MKL_FUNCTIONS = (
    *(torch.exp, torch.expm1, torch.log, torch.log1p, torch.log2, torch.log10, torch.sqrt, torch.lgamma),
    *(torch.tanh, torch.sinh, torch.cosh, torch.erf, torch.erfc, torch.erfinv),
    *(torch.sin, torch.cos, torch.tan, torch.asin, torch.acos, torch.atan),
)


def select_device(cuda: bool, index: int | None = None, count: int = 1) -> torch.device:
    """Return the CUDA device if `cuda`, else the CPU.

    Args:
        cuda: Whether CUDA was asked for.
        index: Which device; it becomes the process's current one. By default the current one.
        count: Number of devices that the processes on this machine need.

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
    """Check that the device has fast bfloat16 instructions. Emulated bfloat16 is slower than float32.

    Intel's processors need AMX: with AVX512-BF16 alone bfloat16 is slower, too.

    Raises:
        DeviceError: It has none, as far as PyTorch can tell.
    """
    if device.type == "cuda":
        is_fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # not in older versions
        is_intel = "Intel" in str(known.get("cpu_name"))
        has_instructions = known.get("amx_bf16") or (known.get("avx512_bf16") and not is_intel)
        is_fast = known.get("architecture") != "x86_64" or bool(has_instructions)
    if not is_fast:
        raise DeviceError(
            f"precision bf16 was asked for, but this {device.type.upper()} has no fast bfloat16 instructions: "
            "fp32 is faster; leave --precision out"
        )


@contextlib.contextmanager
def forked_rng(device: torch.device) -> Iterator[None]:
    """Restore PyTorch's generators, the CPU's and that of `device`, after the body."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


@contextlib.contextmanager
def float32_products(tf32: bool) -> Iterator[None]:
    """Allow or forbid TF32 for matrix products and convolutions on CUDA devices, within the body.

    PyTorch's default allows it for convolutions only.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = tf32
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@functools.cache
def choose_mkl_kernels() -> None:
    """Let MKL choose its kernels in one thread, by calling each of its functions once on one number.

    MKL chooses the kernel of a function at its first call. If several threads make that call together, one of them may
    get a kernel with a relative error of 1e-4: rarely, a process computes one wrong result, and a training differs from
    its repetition or an export fails its comparison. This can go when no supported PyTorch has
    https://github.com/pytorch/pytorch/issues/188792 any more.
    """
    for dtype in (torch.float32, torch.float64):
        number = torch.full((1,), 0.5, dtype=dtype, device="cpu")
        for function in _MKL_FUNCTIONS:
            function(number)
