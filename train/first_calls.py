"""The first calls of PyTorch's functions, made by one thread alone."""

from __future__ import annotations

import torch

_FUNCTIONS = (
    *(torch.exp, torch.expm1, torch.log, torch.log1p, torch.log2, torch.log10, torch.sqrt, torch.lgamma),
    *(torch.tanh, torch.sinh, torch.cosh, torch.erf, torch.erfc, torch.erfinv),
    *(torch.sin, torch.cos, torch.tan, torch.asin, torch.acos, torch.atan),
)


def make_first_calls() -> None:
    """Call once, with one number, what PyTorch leaves to MKL's vector functions on the CPU.

    MKL chooses the kernel of a function at its first call. Where several threads make that together, one of them may be
    given a kernel whose relative error is 1e-4 (https://github.com/pytorch/pytorch/issues/188792). A process now and
    then, one of 160 started to see it, has wrong numbers so, once, and an export in it fails its comparison. One number
    is for one thread.
    """
    for dtype in (torch.float32, torch.float64):
        number = torch.full((1,), 0.5, dtype=dtype, device="cpu")
        for function in _FUNCTIONS:
            function(number)
