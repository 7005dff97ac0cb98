"""Functions without an ONNX operator: the bounds of their docstrings, in PyTorch and in ONNX Runtime."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import special

from edgevae.export import GraphError
from edgevae.export.functions import decompose, exponentials, gamma, matrices, normal
from tests.export.functions import exported, run_exported, traced

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

TINY = 1e-44
"""Absolute error of results that are smaller than float32's normal numbers."""


def values(*parts: NDArray[np.float64] | list[float]) -> Float32:
    """The parts in float32."""
    with np.errstate(under="ignore"):
        return np.concatenate([np.asarray(part, np.float64).astype(np.float32) for part in parts])


MAGNITUDES = np.geomspace(1e-45, 3.4e38, 40_001)
"""From float32's smallest number, a subnormal, to its largest."""
OFFSETS = np.geomspace(1e-7, 0.4, 10_001)
POSITIVE = values(
    MAGNITUDES,
    np.linspace(1e-3, 12, 40_001),
    np.arange(1, 200.0),
    *(root + sign * OFFSETS for root in (1.0, 1.4616321, 2.0, 4.0) for sign in (1, -1)),
    [0.0, -0.0, math.inf, math.nan],
)
NEGATIVE = values(
    -MAGNITUDES, np.linspace(-40, -1e-3, 40_001), *(-n - OFFSETS for n in range(6)), -np.arange(1, 200.0), [-math.inf]
)
REAL = values(
    MAGNITUDES,
    -MAGNITUDES,
    np.linspace(-30, 30, 60_001),
    np.linspace(-120, 120, 20_001),
    [0.0, -0.0, -1.0, math.inf, -math.inf, math.nan],
)
UNIT = values(
    np.linspace(0, 1, 40_001), MAGNITUDES[MAGNITUDES < 1], 1 - OFFSETS, 0.5 - OFFSETS, 0.5 + OFFSETS, [1.5, math.nan, math.inf]
)
SIGNED_UNIT = np.concatenate([UNIT, -UNIT])


@dataclasses.dataclass(frozen=True)
class Case:
    """A function of one argument, what it should be, where, and the error that its docstring allows."""

    of_torch: Callable[[torch.Tensor], torch.Tensor]
    ours: Callable[[torch.Tensor], torch.Tensor]
    exact: Callable[[Float64], Float64]
    x: Float32
    allowed: Callable[[Float64, Float64], Float64]


def relative(bound: float) -> Callable[[Float64, Float64], Float64]:
    return lambda _x, y: bound * np.abs(y)


def log_sigmoid(x: Float64) -> Float64:
    return -np.logaddexp(0, -x)


def gammaln(x: Float64) -> Float64:
    """SciPy's is 0 at -inf, and inf at the other poles."""
    return np.where(x == -math.inf, math.inf, special.gammaln(x))


def digamma(x: Float64) -> Float64:
    return np.where(x == -math.inf, math.nan, special.digamma(x))


def trigamma(x: Float64) -> Float64:
    """By reflection where x is negative, of a fraction that is exact: SciPy's is NaN at some poles."""
    reflected = (np.pi / distance_to_pole(x)) ** 2 - special.polygamma(1, 1 - x)
    reflected = np.where(np.round(x) == x, math.inf, reflected)
    return np.where(x < 0, reflected, special.polygamma(1, np.abs(x)))


def distance_to_pole(x: Float64) -> Float64:
    return np.sin(np.pi * np.abs(x - np.round(x)))


CASES = {
    "log1p": Case(torch.log1p, exponentials.log1p, np.log1p, REAL, relative(5e-7)),
    "expm1": Case(torch.expm1, exponentials.expm1, np.expm1, REAL, relative(5e-7)),
    "log_sigmoid": Case(torch.nn.functional.logsigmoid, exponentials.log_sigmoid, log_sigmoid, REAL, relative(5e-7)),
    "logit": Case(torch.logit, exponentials.logit, special.logit, SIGNED_UNIT, relative(1e-6)),
    "entr": Case(torch.special.entr, exponentials.entr, special.entr, REAL, relative(5e-7)),
    "lgamma": Case(torch.lgamma, gamma.lgamma, gammaln, POSITIVE, relative(1e-6)),
    "lgamma, negative": Case(
        torch.lgamma, gamma.lgamma, gammaln, NEGATIVE, lambda x, _: 1e-6 * (1 + np.abs(special.gammaln(1 - x)))
    ),
    "digamma": Case(torch.digamma, gamma.digamma, digamma, POSITIVE, relative(1e-6)),
    "digamma, negative": Case(
        torch.digamma,
        gamma.digamma,
        digamma,
        NEGATIVE,
        lambda x, _: 2e-6 * (np.abs(special.digamma(1 - x)) + np.pi / distance_to_pole(x)),
    ),
    "trigamma": Case(lambda x: torch.polygamma(1, x), gamma.trigamma, trigamma, POSITIVE, relative(1e-6)),
    "trigamma, negative": Case(
        lambda x: torch.polygamma(1, x),
        gamma.trigamma,
        trigamma,
        NEGATIVE,
        lambda x, _: 2e-6 * (np.pi / distance_to_pole(x)) ** 2,
    ),
    "erfc": Case(torch.erfc, normal.erfc, special.erfc, REAL, relative(1e-6)),
    "erfcx": Case(torch.special.erfcx, normal.erfcx, special.erfcx, REAL, relative(1e-6)),
    "ndtr": Case(torch.special.ndtr, normal.ndtr, special.ndtr, REAL, relative(1e-6)),
    "log_ndtr": Case(torch.special.log_ndtr, normal.log_ndtr, special.log_ndtr, REAL, relative(1e-6)),
    "erfinv": Case(torch.erfinv, normal.erfinv, special.erfinv, SIGNED_UNIT, relative(1e-6)),
    "ndtri": Case(torch.special.ndtri, normal.ndtri, special.ndtri, SIGNED_UNIT, relative(1e-6)),
}


def assert_within(found: Float32, case: Case) -> None:
    """Infinities and NaN are where they should be; all else is within the bound."""
    x = case.x.astype(np.float64)
    with np.errstate(all="ignore"):
        exact = case.exact(x)
        rounded = exact.astype(np.float32)
        allowed = np.maximum(case.allowed(x, exact), TINY)
        off = np.abs(found - exact) / allowed
    special_values = ~np.isfinite(rounded)
    np.testing.assert_array_equal(found[special_values], rounded[special_values])
    off = np.where(special_values, 0, off)
    worst = np.nan_to_num(off, nan=math.inf).argmax()
    assert off[worst] <= 1, f"{off[worst]:.2f} times the bound at {x[worst]!r}: {found[worst]!r}, not {exact[worst]!r}"


@pytest.mark.parametrize("name", CASES)
def test_a_function_keeps_its_bound_in_pytorch(name: str) -> None:
    case = CASES[name]
    assert_within(case.ours(torch.from_numpy(case.x)).numpy(), case)


@pytest.mark.parametrize("name", CASES)
def test_a_function_keeps_its_bound_in_onnx_runtime(name: str) -> None:
    case = CASES[name]
    model = exported(case.of_torch, torch.rand(3))
    assert_within(run_exported(model, case.x)[0], case)
