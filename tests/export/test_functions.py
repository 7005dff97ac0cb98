"""Functions without an ONNX operator: the bounds of their docstrings, in PyTorch and in ONNX Runtime."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import special

from edgevae.train import TraceError
from edgevae.train.functions import decompose, exponentials, gamma, matrices, normal
from tests.export.functions import exported, run_exported, traced
from tests.export.graphs import operators

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
    np.linspace(0, 1, 40_001),
    MAGNITUDES[MAGNITUDES < 1],
    1 - OFFSETS,
    0.5 - OFFSETS,
    0.5 + OFFSETS,
    [1.5, math.nan, math.inf],
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
    """By reflection where x is negative, of a fraction that is exact; PyTorch's own is right for positive x."""
    positive: Float64 = torch.polygamma(1, torch.from_numpy(np.where(x < 0, 1 - x, x))).numpy()
    reflected = (np.pi / distance_to_pole(x)) ** 2 - positive
    return np.where(x < 0, np.where(np.round(x) == x, math.inf, reflected), positive)


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
        torch.lgamma,
        gamma.lgamma,
        gammaln,
        NEGATIVE,
        lambda x, y: 1e-6 * (1 + np.abs(special.gammaln(1 - x)) + np.abs(y)),
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


def test_two_argument_functions_and_sums_are_exact_at_zero_and_infinity() -> None:
    """Each value follows from the definition."""
    inf = math.inf
    x = torch.tensor([0.0, 0.0, 0.0, math.nan, 2.0, 2.0])
    y = torch.tensor([0.0, inf, math.nan, 0.0, 0.0, 1.0])
    for function in (torch.xlogy, torch.special.xlog1py):
        np.testing.assert_allclose(
            run_exported(exported(function, x, y), x.numpy(), y.numpy())[0], function(x, y), rtol=1e-6
        )
    a = torch.tensor([-inf, inf, -inf, inf, 1e30, -200.0, 3.0, math.nan])
    b = torch.tensor([-inf, inf, 5.0, -inf, -1e30, -200.0, 3.5, 1.0])
    for function in (torch.logaddexp, torch.logaddexp2):
        found = run_exported(exported(function, a, b), a.numpy(), b.numpy())[0]
        np.testing.assert_allclose(found, function(a.double(), b.double()), rtol=1e-6)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (
            torch.xlogy(x, 0.3) + torch.xlogy(0.7, x) + torch.special.xlog1py(x, 0.3) + torch.special.xlog1py(0.7, x)
        ),
        lambda x: torch.logit(x, eps=0.2) + torch.special.logit(x),
        lambda x: (
            torch.mvlgamma(x + 3, 2) + torch.special.gammaln(x) + torch.special.psi(x) + torch.special.polygamma(0, x)
        ),
        lambda x: torch.special.erfc(x) + torch.special.erfinv(x) + torch.special.expm1(x) + torch.special.log1p(x),
        lambda x: x.clone().lgamma_(),
        lambda x: torch.nn.functional.binary_cross_entropy_with_logits(x, 1 - x, reduction="none"),
        lambda x: torch.nn.functional.binary_cross_entropy_with_logits(x, 1 - x, x, pos_weight=x, reduction="none"),
    ],
)
def test_other_names_of_the_functions_are_known(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    x = torch.linspace(0.01, 0.99, 99)
    found = run_exported(exported(function, x), x.numpy())[0]
    np.testing.assert_allclose(found, function(x.double()), rtol=2e-6, atol=2e-6)


ROWS = torch.tensor(
    [[1.0, 2.0, 3.0], [-1e30, 5.0, -7.0], [-math.inf] * 3, [0.0, math.inf, 1.0], [200.0, -math.inf, 200.0]]
)


def test_logsumexp_is_right_for_each_batch_and_for_rows_without_mass() -> None:
    model = exported(lambda x: (x.logsumexp(-1), x.logsumexp((0, 1), keepdim=True), x.logcumsumexp(1)), ROWS)
    assert "ReduceLogSumExp" not in operators(model)
    for x in (ROWS[:1], ROWS[:2], ROWS):
        row, whole, up_to = run_exported(model, x.numpy())
        np.testing.assert_allclose(row, x.double().logsumexp(-1), rtol=1e-6)
        np.testing.assert_allclose(whole, x.double().logsumexp((0, 1), keepdim=True), rtol=1e-6)
        np.testing.assert_allclose(up_to, x.double().logcumsumexp(1), rtol=1e-6)


def test_logsumexp_of_no_axis_is_the_value_itself() -> None:
    np.testing.assert_array_equal(exponentials.logsumexp(torch.tensor(3.0), ()), 3)


def test_integers_and_half_floats_are_computed_in_float32() -> None:
    counts = torch.tensor([1, 2, 30])
    found = run_exported(exported(torch.lgamma, counts), counts.numpy())[0]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, torch.lgamma(counts.double()), rtol=1e-6)
    half = torch.tensor([1e-3, 0.5, 3.0], dtype=torch.float16)
    program = decompose(traced(torch.log1p, half)).module()
    assert program(half).dtype == torch.float16
    np.testing.assert_allclose(program(half).double(), torch.log1p(half.double()), rtol=2**-10)


# Sums of lgamma


GRID = np.geomspace(1e-3, 1e7, 24)
A, B = (
    torch.from_numpy(grid.astype(np.float32).ravel()) for grid in np.meshgrid(GRID, np.append(GRID, [1, 2, 3, 100]))
)


def exactly(function: Callable[..., Any], *arguments: torch.Tensor) -> Float64:
    """In 50 digits, from the arguments in float32."""
    with mpmath.workdps(50):
        return np.array(
            [float(function(*map(mpmath.mpf, row))) for row in zip(*(a.tolist() for a in arguments), strict=True)]
        )


def test_a_difference_of_lgamma_keeps_its_bound() -> None:
    exact = exactly(lambda x, n: mpmath.loggamma(x + n) - mpmath.loggamma(x), A, B)
    allowed = 1e-6 * (1 + B * (1 + (A + B).log().abs())).double().numpy()
    assert (np.abs(gamma.lgamma_difference(A, B).numpy() - exact) <= allowed).all()


def test_log_beta_and_log_binomial_keep_their_bounds() -> None:
    beta = exactly(lambda a, b: mpmath.loggamma(a) + mpmath.loggamma(b) - mpmath.loggamma(a + b), A, B)
    assert (np.abs(gamma.log_beta(A, B).numpy() - beta) <= 1e-6 * (1 + np.abs(beta))).all()
    known = A + B > 1.01  # below, a + b - 1 is itself lost
    a, b = A[known], B[known]
    binomial = exactly(lambda a, b: mpmath.loggamma(a + b - 1) - mpmath.loggamma(a) - mpmath.loggamma(b), a, b)
    assert (np.abs(gamma.log_binomial(a, b).numpy() - binomial) <= 1e-6 * (1 + np.abs(binomial))).all()
    np.testing.assert_array_equal(gamma.log_binomial(torch.ones(5), torch.tensor([1.0, 5, 1e6, 1e-3, 0.0201534])), 0)


LARGE = torch.tensor([[1e6, 3e7], [5.0, 2e4], [7e3, 9.0]])
SMALL = torch.tensor([[3.0, 50.0], [2.0, 700.0], [1.0, 4.0]])


def of_a_column(x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    t = x[:, :1]
    return torch.lgamma(t.expand_as(n) + n) - torch.lgamma(t)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, n: torch.lgamma(x + n) - torch.lgamma(x),
        lambda x, n: n - torch.lgamma(x) + (torch.special.gammaln(n + x) + 2.0),
        lambda x, n: 1 - torch.lgamma(x + n) + torch.lgamma(x),
        lambda x, _: torch.lgamma((x + 1) / 2) - torch.lgamma(0.5 * x),
        lambda x, n: torch.lgamma(x + n) - torch.lgamma(x) - torch.lgamma(n),
        lambda x, n: -(torch.lgamma(1 + n) + torch.lgamma(x) - torch.lgamma(x + n)),
        lambda x, n: torch.lgamma(x + 1) - torch.lgamma(n + 1) - torch.lgamma(1 + x - n),
        of_a_column,
        lambda x, _: torch.lgamma(x.sum(-1)) - torch.lgamma(x).sum(-1),
        lambda x, _: torch.lgamma(x.sum(-1, keepdim=True)) - torch.lgamma(x).sum(-1, keepdim=True),
        lambda _, n: torch.lgamma(n.sum(0) + 1) - torch.lgamma(n + 1).sum(0),
    ],
)
def test_sums_of_lgamma_do_not_cancel_in_a_program(
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    """The arguments are so large that a single lgamma is off by more than the bound."""
    exact = function(LARGE.double(), SMALL.double()).numpy()
    found = decompose(traced(function, LARGE, SMALL)).module()(LARGE, SMALL).numpy()
    assert found.shape == exact.shape
    np.testing.assert_allclose(found, exact, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, n: torch.lgamma(x) + torch.lgamma(x + n),
        lambda x, n: torch.lgamma(x * n) - torch.lgamma(x),
        lambda x, n: torch.add(torch.lgamma(x + n), torch.lgamma(x), alpha=-2),
        lambda x, n: torch.lgamma(x.sum(-1)) - torch.lgamma(n).sum(-1),
        lambda x, _: torch.lgamma(x.sum(-1) + 2) - torch.lgamma(x + 2).sum(-1),
        lambda x, _: torch.lgamma(x.sum(-1)) - torch.lgamma(x).sum((0, 1)),
    ],
)
def test_other_sums_of_lgamma_stay(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    x, n = torch.rand(3, 2) + 1, torch.rand(3, 2) + 1
    found = decompose(traced(function, x, n)).module()(x, n)
    np.testing.assert_allclose(found, function(x.double(), n.double()), rtol=2e-6, atol=2e-6)


# Matrices


def positive_definite(size: int, rows: int = 3) -> torch.Tensor:
    a = torch.randn(rows, size, size)
    return a @ a.mT + torch.eye(size)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_a_cholesky_factor_gives_its_matrix_and_the_determinant(size: int) -> None:
    matrix = positive_definite(size)
    model = exported(lambda a: (torch.linalg.cholesky(a), torch.linalg.cholesky(a, upper=True)), matrix)
    for rows in (1, 2, 7):
        matrix = positive_definite(size, rows)
        lower, upper = (torch.from_numpy(found).double() for found in run_exported(model, matrix.numpy()))
        np.testing.assert_array_equal(lower.triu(1), 0)
        np.testing.assert_array_equal(upper, lower.mT)
        off = (lower @ lower.mT - matrix.double()).abs().amax((-2, -1))
        assert (off <= 1e-6 * matrix.abs().amax((-2, -1))).all()
        exact = matrix.double().logdet()
        np.testing.assert_allclose(matrices.log_determinant(matrix), exact, rtol=1e-5, atol=1e-5)


def test_a_matrix_that_is_not_positive_definite_gives_nan() -> None:
    assert matrices.cholesky(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))[1, 1].isnan()


def test_triangular_systems_are_solved() -> None:
    size = 4
    matrix = torch.randn(3, size, size) / 4 + 2 * torch.eye(size)  # the other triangle is not to be read
    columns, rows = torch.randn(3, size, 2), torch.randn(3, 2, size)

    def solve(a: torch.Tensor, columns: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(
            torch.linalg.solve_triangular(a, b, upper=upper, left=b is columns, unitriangular=unitriangular)
            for b in (columns, rows)
            for upper in (True, False)
            for unitriangular in (True, False)
        )

    arguments = (matrix, columns, rows)
    found = run_exported(exported(solve, *arguments), *(each.numpy() for each in arguments))
    exact = solve(*(each.double() for each in arguments))
    assert len(found) == len(exact) == 8
    for one, other in zip(found, exact, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated:UserWarning")
def test_the_older_names_of_triangular_systems_are_known() -> None:
    matrix, right = positive_definite(2), torch.randn(3, 2, 2)

    def solve(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results = []
        for upper in (True, False):
            factor, _ = torch.linalg.cholesky_ex(a, upper=upper)
            results += [torch.cholesky_solve(b, factor, upper), torch.cholesky_inverse(factor, upper)]
            results += [torch.triangular_solve(b, a, upper, transpose)[0] for transpose in (True, False)]
        return tuple(results)

    found = run_exported(exported(solve, matrix, right), matrix.numpy(), right.numpy())
    for one, exact in zip(found, solve(matrix.double(), right.double()), strict=True):
        np.testing.assert_allclose(one, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (torch.linalg.cholesky, "cholesky of 9 x 9 matrices.*up to 8 x 8; take a diagonal normal"),
        (lambda a: torch.linalg.solve_triangular(a, a, upper=False), "solve_triangular of 9 x 9 matrices"),
        (lambda a: torch.polygamma(2, a), "polygamma of order 2"),
    ],
)
def test_what_has_no_form_is_refused_with_the_remedy(
    function: Callable[[torch.Tensor], torch.Tensor], said: str
) -> None:
    with pytest.raises(TraceError, match=said):
        decompose(traced(function, positive_definite(9)))


# Programs


def test_a_mask_becomes_a_choice() -> None:
    def masked(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[x < 0] = 7
        return x

    x = torch.randn(5, 3)
    model = exported(masked, x)
    assert "NonZero" not in operators(model)
    np.testing.assert_array_equal(run_exported(model, x[:2].numpy())[0], masked(x[:2]))


def test_other_assignments_stay() -> None:
    def assigned(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[:, torch.tensor([0, 2])] = 7
        return x

    x = torch.randn(5, 3)
    np.testing.assert_array_equal(run_exported(exported(assigned, x), x[:2].numpy())[0], assigned(x[:2]))


def test_a_program_is_not_changed_and_other_operators_stay() -> None:
    program = traced(lambda x: torch.nn.functional.softplus(torch.lgamma(x + 1) - torch.lgamma(x)), torch.rand(3, 2))
    before = str(program.graph)
    targets = {str(node.target) for node in decompose(program).graph.nodes}
    assert str(program.graph) == before
    assert "aten.softplus.default" in targets
    assert "aten.lgamma.default" not in targets


def test_a_decomposed_program_decomposes_to_itself() -> None:
    once = decompose(traced(torch.special.log_ndtr, torch.rand(3, 2)))
    assert [node.target for node in decompose(once).graph.nodes] == [node.target for node in once.graph.nodes]
