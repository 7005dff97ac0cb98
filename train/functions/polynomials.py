"""Polynomials, as the fits of the other modules use them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Return the polynomial at `x`, by Horner's rule; the constant coefficient comes first."""
    *others, last = coefficients
    value = x * last + others.pop()
    while others:
        value = value * x + others.pop()
    return value
