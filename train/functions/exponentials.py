"""Logarithms and exponentials of sums, each without the cancellation of the plain formula.

Bounds hold in float32 against the exact value of the same float32 argument, in PyTorch and in ONNX Runtime.

The polynomials are our own: relative minimax fits, by Lawson's iteration (least squares, weighted anew by the error) at
600 Chebyshev nodes against mpmath with 40 digits. Every fit's own error is below 3e-8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .polynomials import polynomial

# log(1 + x) / d by d², where d = x / (1 + x/2): for 0 <= x <= 1, and for |x| <= 0.3
_LOG1P_OF_UNIT = (1.0, 0.0833328934, 0.0125077844, 0.00218442225, 0.000550357924)
_LOG1P_OF_SMALL = (1.0, 0.0833335835, 0.0124904132, 0.00234900065)
# (exp(x) - 1 - x) / x² for |x| <= 1/2
_EXPM1_OF_SMALL = (0.500000012, 0.166666655, 0.0416657959, 0.00833345231, 0.00139819972, 0.000198755836)


def log1p(x: Tensor) -> Tensor:
    """Return log(1 + x) with a relative error of at most 5e-7; -inf at -1, NaN below.

    For |x| < 0.3, log(1 + x) = 2 artanh(d/2) with d = x / (1 + x/2) (Abramowitz and Stegun 4.1.27 and 4.6.22), as d
    times a polynomial in d².
    """
    small = _twice_artanh_of_half(x, _LOG1P_OF_SMALL)
    return torch.where(x.abs() < 0.3, small, (1 + x).log())


def expm1(x: Tensor) -> Tensor:
    """Return exp(x) - 1 with a relative error of at most 5e-7: x + x² times a polynomial where |x| < 1/2."""
    small = x + x * x * polynomial(x, _EXPM1_OF_SMALL)
    return torch.where(x.abs() < 0.5, small, x.exp() - 1)


def log_sigmoid(x: Tensor) -> Tensor:
    """Return log(1 / (1 + exp(-x))) = min(x, 0) - log(1 + exp(-|x|)), with a relative error of at most 5e-7."""
    return x.clamp(max=0) - _log1p_exp_of_minus(x.abs())


def binary_cross_entropy_with_logits(
    x: Tensor, target: Tensor, weight: Tensor | None = None, pos_weight: Tensor | None = None, reduction: int = 1
) -> Tensor:
    """Return -target log(sigmoid(x)) - (1 - target) log(sigmoid(-x)), as `torch.nn.functional` defines it.

    Args:
        x: Logits.
        target: Probabilities, of a shape that broadcasts with the logits'.
        weight: Of each value.
        pos_weight: Of the first term.
        reduction: 0 for none, 1 for the mean, 2 for the sum: PyTorch's own numbers.
    """
    if pos_weight is None:
        # log(sigmoid(-x)) = log(sigmoid(x)) - x
        loss = (1 - target) * x - log_sigmoid(x)
    else:
        loss = -pos_weight * target * log_sigmoid(x) - (1 - target) * log_sigmoid(-x)
    if weight is not None:
        loss = loss * weight
    return (loss, loss.mean(), loss.sum())[reduction]


def logit(x: Tensor, eps: float | None = None) -> Tensor:
    """Return log(x / (1 - x)), with a relative error of at most 1e-6; -inf at 0, inf at 1, NaN outside.

    Near 1/2, it is log(1 + (2x - 1) / (1 - x)).

    Args:
        x: Probabilities.
        eps: Clamps them to [eps, 1 - eps] first, if given.
    """
    if eps is not None:
        x = x.clamp(eps, 1 - eps)
    centre = log1p((2 * x - 1) / (1 - x))
    return torch.where((x - 0.5).abs() < 0.25, centre, (x / (1 - x)).log())


def logaddexp(x: Tensor, y: Tensor) -> Tensor:
    """Return log(exp(x) + exp(y)) = max(x, y) + log(1 + exp(-|x - y|)).

    The error is at most 5e-7 max(|x|, |y|, 1); two infinities of the same sign give that infinity.
    """
    gap = torch.where(x == y, torch.zeros_like(x - y), (x - y).abs())  # inf - inf would be NaN
    return torch.maximum(x, y) + _log1p_exp_of_minus(gap)


def logaddexp2(x: Tensor, y: Tensor) -> Tensor:
    """Return log2(2ˣ + 2ʸ), by `logaddexp`."""
    return logaddexp(x * math.log(2), y * math.log(2)) / math.log(2)


def logsumexp(x: Tensor, dim: int | Sequence[int], keepdim: bool = False) -> Tensor:
    """Return log(sum(exp(x))) = m + log(sum(exp(x - m))), where m = max(x).

    The error is at most 1e-6 (1 + |result| + |m|).

    Rows of -inf give -inf; a row with inf gives inf. ONNX's ReduceLogSumExp is not used: some engines compute it
    wrongly for more than one row.

    Args:
        x: Values.
        dim: The axes of the sum; all of them if empty.
        keepdim: Whether the result keeps these axes, with a size of 1.
    """
    axes = [dim] if isinstance(dim, int) else list(dim) or list(range(x.dim()))
    if not axes:
        return x.clone()
    largest = x.amax(axes, keepdim=True)
    largest = torch.where(largest.abs() == math.inf, torch.zeros_like(largest), largest)  # inf - inf would be NaN
    total = (x - largest).exp().sum(axes, keepdim=True).log() + largest
    return total if keepdim else total.squeeze(axes)


def logcumsumexp(x: Tensor, dim: int) -> Tensor:
    """Return `logsumexp` of the values up to each one along an axis of static size."""
    x = x.movedim(dim, -1)
    later = torch.ones(x.shape[-1], x.shape[-1], dtype=torch.bool, device=x.device).triu(1)
    parts = x[..., None, :].masked_fill(later, -math.inf)
    return logsumexp(parts, -1).movedim(-1, dim)


def xlogy(x: Tensor | float, y: Tensor | float) -> Tensor:
    """Return x log(y), 0 where x is 0 and y is any number, NaN where one of them is NaN."""
    x, y = _tensors(x, y)
    return _product_or_zero(x, y.log(), y)


def xlog1py(x: Tensor | float, y: Tensor | float) -> Tensor:
    """Return x log(1 + y), 0 where x is 0 and y is any number, NaN where one of them is NaN."""
    x, y = _tensors(x, y)
    return _product_or_zero(x, log1p(y), y)


def entr(x: Tensor) -> Tensor:
    """Return -x log(x), 0 at 0 and -inf below."""
    return torch.where(x < 0, torch.full_like(x, -math.inf), -xlogy(x, x))


def _tensors(x: Tensor | float, y: Tensor | float) -> tuple[Tensor, Tensor]:
    """Return both as tensors; a number takes the other one's type."""
    like = x if isinstance(x, Tensor) else y
    assert isinstance(like, Tensor)  # noqa: S101 - PyTorch's operators have a tensor among the two
    first, second = (value if isinstance(value, Tensor) else torch.full_like(like, value) for value in (x, y))
    return first, second


def _product_or_zero(x: Tensor, logarithm: Tensor, y: Tensor) -> Tensor:
    product = x * logarithm
    return torch.where((x == 0) & (y == y), torch.zeros_like(product), product)  # noqa: PLR0124 - false for NaN


def _log1p_exp_of_minus(x: Tensor) -> Tensor:
    """log(1 + exp(-x)) for x >= 0."""
    return _twice_artanh_of_half((-x).exp(), _LOG1P_OF_UNIT)


def _twice_artanh_of_half(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """log(1 + x), from the polynomial in d²."""
    d = x / (1 + 0.5 * x)
    return d * polynomial(d * d, coefficients)
