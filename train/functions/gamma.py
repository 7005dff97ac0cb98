"""The gamma function's logarithm, its derivatives, and differences that would cancel.

Bounds hold in float32 against the exact value of the same float32 argument, in PyTorch and in ONNX Runtime.

The rational functions and polynomials are our own: relative minimax fits, by Lawson's iteration (least squares,
weighted anew by the error; a rational function linearised at its last denominator) at 600 Chebyshev nodes against
mpmath with 40 digits. Every fit's own error is below 5e-8, or that of a small term.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import TraceError
from .exponentials import log1p
from .polynomials import polynomial

_FAR = 4.0
"""From here on, Stirling's series; below, rational functions."""
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)

# lgamma(x) / ((x - 1) (x - 2)) for 1 <= x <= 4
_LGAMMA = (
    (1.80998515, 6.9888082, 3.57764104, 0.238257086),
    (1.0, 8.88143616, 9.83275579, 2.07977993, 0.0604100413),
)
# x (lgamma(x) - (x - 1/2) log(x) + x - log(2π)/2) by 1/x², for x >= 4
_LGAMMA_FAR = (0.0833333295, -0.00277663329, 0.000743014648)

_ROOT = 1.4616321325302124, 1.2438149843418955e-08
"""Digamma's positive zero, as the sum of two float32 numbers."""
# x digamma(x) / (x - root) for 0 <= x <= 4
_DIGAMMA = (
    (0.684166675, 1.96946771, 1.34212323, 0.257733211, 0.00966555072),
    (1.0, 1.61725547, 0.703643186, 0.0867120202, 0.00187755814),
)
# x² (log(x) - 1/(2x) - digamma(x)) by 1/x², for x >= 4
_DIGAMMA_FAR = (0.0833333073, -0.00832559608, 0.00362274197)

# x² trigamma(x) for 0 <= x <= 4
_TRIGAMMA = (
    (1.00000001, 2.95977142, 4.64296581, 3.52870323, 1.06480859),
    (1.0, 2.95977317, 2.99798923, 1.06458153, 1.3600482e-05),
)
# x³ (trigamma(x) - 1/x - 1/(2x²)) by 1/x², for x >= 4
_TRIGAMMA_FAR = (0.166666467, -0.0332737339, 0.0211213106)

# sin(πr) / (πr) by r², and πr / tan(πr) / (1 - 4r²) by r², for |r| <= 1/2
_SINC = (0.999999995, -1.64493308, 0.811712404, -0.190426383, 0.0246882376)
_COTANGENT = ((1.0, -0.288450622, -0.0332253026, -0.00626987614), (1.0, -0.998581859))


def lgamma(x: Tensor) -> Tensor:
    """Return log |Γ(x)|; inf at 0 and the negative integers.

    For x > 0, the relative error is at most 1e-6, also at the zeros 1 and 2. For x < 0, the error is at most
    1e-6 (1 + lgamma(1 - x) + |lgamma(x)|).

    From 4 on, it is Stirling's series (Abramowitz and Stegun 6.1.40), below (x - 1)(x - 2) times a rational function,
    below 1 by lgamma(x) = lgamma(x + 1) - log(x), below 0 by reflection, lgamma(x) = log(π / |sin(πx)|) - lgamma(1 -
    x), where sin takes x less the nearest integer.
    """
    negative = x < 0
    y = torch.where(negative, 1 - x, x)
    near, log = y < 1, y.log()
    first = torch.where(near, y, y - 1)  # y + 1 would be rounded
    second = torch.where(near, y - 1, y - 2)
    low = first * second * _rational(torch.where(near, y + 1, y), _LGAMMA) - torch.where(
        near, log, torch.zeros_like(log)
    )
    high = (y - 0.5) * (log - 1) + _stirling(y) + (_HALF_LOG_2PI - 0.5)
    positive = torch.where(y < _FAR, low, high)
    r = _to_nearest_integer(x)
    reflected = -r.abs().log() - polynomial(r * r, _SINC).log() - positive
    reflected = torch.where(r == 0, torch.full_like(r, math.inf), reflected)  # not inf - inf
    return torch.where(negative, reflected, positive)


def multigammaln(x: Tensor, p: int) -> Tensor:
    """Return the logarithm of the multivariate gamma function of dimension `p`, from `lgamma`."""
    constant = p * (p - 1) / 4 * math.log(math.pi)
    return sum((lgamma(x - i / 2) for i in range(1, p)), lgamma(x)) + constant


def digamma(x: Tensor) -> Tensor:
    """Return the derivative of lgamma; ∓inf at ±0, NaN at the negative integers.

    For x > 0, the relative error is at most 1e-6, also at the zero 1.46. For x < 0, the error is at most
    2e-6 (|digamma(1 - x)| + |π / tan(πx)|).

    From 4 on, it is the asymptotic series (Abramowitz and Stegun 6.3.18), below (x - 1.46)/x times a rational function,
    below 0 by reflection, digamma(x) = digamma(1 - x) - π / tan(πx).
    """
    negative = x < 0
    y = torch.where(negative, 1 - x, x)
    low = ((y - _ROOT[0]) - _ROOT[1]) * _rational(y, _DIGAMMA) / y
    inverse = 1 / y
    square = inverse * inverse
    high = y.log() - 0.5 * inverse - square * polynomial(square, _DIGAMMA_FAR)
    positive = torch.where(y < _FAR, low, high)
    r = _to_nearest_integer(x)
    # r / r is NaN at the poles; a constant NaN would be taken for a damaged weight
    reflected = positive - (r / r) * (1 - 4 * r * r) * _rational(r * r, _COTANGENT) / r
    return torch.where(negative, reflected, positive)


def trigamma(x: Tensor) -> Tensor:
    """Return the second derivative of lgamma; inf at 0 and the negative integers.

    The relative error is at most 1e-6 for x > 0, and for x < 0 at most 2e-6 times (π / sin(πx))².

    From 4 on, it is the asymptotic series (Abramowitz and Stegun 6.4.12), below a rational function over x², below 0 by
    reflection, trigamma(x) = (π / sin(πx))² - trigamma(1 - x).
    """
    negative = x < 0
    y = torch.where(negative, 1 - x, x)
    inverse = 1 / y
    square = inverse * inverse
    high = inverse + 0.5 * square + inverse * square * polynomial(square, _TRIGAMMA_FAR)
    positive = torch.where(y < _FAR, square * _rational(y, _TRIGAMMA), high)
    r = _to_nearest_integer(x)
    root = 1 / (r * polynomial(r * r, _SINC))
    return torch.where(negative, root * root - positive, positive)


def polygamma(n: int, x: Tensor) -> Tensor:
    """Return `digamma` for n = 0, `trigamma` for n = 1.

    Raises:
        TraceError: n is larger.
    """
    if n > 1:
        raise TraceError(
            f"polygamma of order {n} has no ONNX form here, only orders 0 and 1; leave it out of the program"
        )
    return trigamma(x) if n else digamma(x)


def lgamma_difference(x: Tensor, n: Tensor | float) -> Tensor:
    """Return lgamma(x + n) - lgamma(x), for positive x and x + n.

    The error is at most 1e-6 (1 + |n| (1 + |log(x + n)|)): that of the result, where the two terms alone would leave
    that of lgamma(x).

    Where both are 4 or more, Stirling's series gives (x - 1/2) log(1 + n/x) + n (log(x + n) - 1), and its small terms.
    """
    y = x + n
    both = torch.stack(torch.broadcast_tensors(x, y))  # one lgamma of both is half the graph
    return _difference(n, both, lgamma(both), _stirling(both))


def log_beta(a: Tensor, b: Tensor) -> Tensor:
    """Return log(Γ(a) Γ(b) / Γ(a + b)), for positive a and b, with an error of at most 1e-6 (1 + |result|)."""
    return _log_beta(a, b, 0)


def log_binomial(a: Tensor, b: Tensor) -> Tensor:
    """Return log(Γ(a + b - 1) / (Γ(a) Γ(b))), with an error of at most 1e-6 (1 + |result|), for positive a and b.

    It is the logarithm of the binomial coefficient "n over k" for a = k + 1 and b = n - k + 1, and of "v + t - 1 over
    v" for a = v + 1 and b = t. It is 0 where a or b is 1.
    """
    return -_log_beta(a, b, -1)


def _log_beta(a: Tensor, b: Tensor, shift: int) -> Tensor:
    """log(Γ(a) Γ(b) / Γ(a + b + shift)), for a shift of 0 or -1.

    Where both are 4 or more, Stirling's series gives a sum without cancellation: all its large terms are negative.
    """
    small, large = torch.minimum(a, b), torch.maximum(a, b)
    n = small + shift
    values = torch.stack([small, large, (large + shift) + small])  # so that a or b of 1 gives exactly 0
    of_gamma, of_stirling = lgamma(values), _stirling(values)
    near = of_gamma[0] - _difference(n, values[1:], of_gamma[1:], of_stirling[1:])
    total = a + b
    far = (
        (0.5 - large) * log1p(small / large)
        - small * log1p(large / small)
        - 0.5 * small.log()
        + (of_stirling[0] + of_stirling[1] - _stirling(total) + _HALF_LOG_2PI)
    )
    if shift:
        far = far + (total - 1).log()
    return torch.where(small < _FAR, near, far)


def _difference(n: Tensor | float, values: Tensor, of_gamma: Tensor, of_stirling: Tensor) -> Tensor:
    """lgamma(x + n) - lgamma(x), from x and x + n, their lgamma and their remainders of Stirling's formula."""
    x, y = values[0], values[1]
    far = (x - 0.5) * log1p(n / x) + n * (y.log() - 1) + (of_stirling[1] - of_stirling[0])
    return torch.where(torch.minimum(x, y) < _FAR, of_gamma[1] - of_gamma[0], far)


def _rational(x: Tensor, coefficients: tuple[Sequence[float], Sequence[float]]) -> Tensor:
    numerator, denominator = coefficients
    return polynomial(x, numerator) / polynomial(x, denominator)


def _stirling(x: Tensor) -> Tensor:
    """What Stirling's formula lacks for x >= 4: lgamma(x) - (x - 1/2) log(x) + x - log(2π)/2."""
    inverse = 1 / x
    return inverse * polynomial(inverse * inverse, _LGAMMA_FAR)


def _to_nearest_integer(x: Tensor) -> Tensor:
    """X less the nearest integer, exactly. Below -2²⁴ every float32 number is an integer."""
    x = x.clamp(min=-(2.0**24))
    return x - x.round()
