"""Seeds and shapes of noise: PyTorch's numbers, or an `InputError`.

Eight bytes and a sign are the seed; each byte after them a call, and what it is called with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgevae import InputError, Noise
from tests.fuzz.target import Target

STRANGE = (-1, -(2**70), 2**41, 2**62, 2**63, 2**64, 2**70, 1.0, True, None, "3", np.int8(-3), np.nan)
MOST = 4096
"""Values that are drawn and compared at once."""


def make(_work: Path) -> Target:
    lengths = (0, 1, 7, 15, 16, 17, 33, 64, 255)
    seeds = [seed.to_bytes(9, "little", signed=True) + bytes(lengths) for seed in (0, 1, 2**32, 2**64 - 1, -1)]
    return Target(check, seeds, [b"\xff", b"\x80"])


def check(data: bytes) -> None:
    seed = int.from_bytes(data[:9], "little", signed=True)
    try:
        noise = Noise(seed)
    except InputError:
        assert not 0 <= seed < 2**64
        return
    generator = torch.Generator().manual_seed(seed % 2**64)
    calls = data[9:]
    for at in range(0, len(calls) - 3, 4):
        how, *lengths = calls[at : at + 4]
        shape = [length for length in lengths[: how % 4] if length < 200] if how % 8 < 4 else [lengths[0] * 16]
        if how >= 128:
            strange = [*shape, STRANGE[how % len(STRANGE)]]
            refused(noise, strange)
        elif np.prod(shape) <= MOST:
            drawn, expected = noise.standard_normal(shape), torch.randn(shape, generator=generator).numpy()
            np.testing.assert_allclose(drawn, expected, rtol=0, atol=1e-6)
            size = lengths[2]
            np.testing.assert_array_equal(noise.uniform(size), torch.rand(size, generator=generator).numpy())


def refused(noise: Noise, shape: Sequence[Any]) -> None:
    """Check that a shape that is none is refused, and nothing drawn."""
    calls: list[tuple[Callable[[Any], Any], Any]] = [(noise.standard_normal, shape), (noise.uniform, shape[-1])]
    for call, given in calls:
        try:
            call(given)
        except InputError:
            continue
        raise AssertionError(f"{call} took {given}")
