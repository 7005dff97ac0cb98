"""Cholesky factors and triangular systems of small matrices, written out row by row.

The sizes of the matrices are known while the program is traced; the axes before them may be dynamic. A matrix of n rows
takes about 6 n operators, so the size is limited.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import TraceError

LARGEST = 8
"""Rows of the largest matrix."""


def cholesky(matrix: Tensor, upper: bool = False) -> Tensor:
    """Return the Cholesky factor of symmetric positive definite matrices.

    Only the lower triangle is read. A matrix that is not positive definite gives NaN: a graph cannot raise an error.

    Args:
        matrix: Shape `(..., n, n)`, n at most 8.
        upper: Whether to return the upper factor, the transpose of the lower one.

    Returns:
        L with L Lᵀ = matrix; the largest error of L Lᵀ is 1e-6 of the largest value of the matrix.

    Raises:
        TraceError: n is larger than 8, or not known while tracing.
    """
    size = _size("cholesky", matrix)
    columns = []
    for i in range(size):
        column = matrix[..., :, :1] / matrix[..., :1, :1].sqrt()
        columns.append(torch.cat([torch.zeros_like(column[..., :1, :]).expand(*column.shape[:-2], i, 1), column], -2))
        matrix = (matrix - column * column.mT)[..., 1:, 1:]
    lower = torch.cat(columns, -1)
    return lower.mT if upper else lower


def cholesky_ex(matrix: Tensor, *, upper: bool = False, check_errors: bool = False) -> tuple[Tensor, Tensor]:
    """Return `cholesky`, and zeros in place of LAPACK's codes: a matrix that is not positive definite gives NaN."""
    del check_errors
    return cholesky(matrix, upper), torch.zeros(matrix.shape[:-2], dtype=torch.int32, device=matrix.device)


def solve_triangular(
    matrix: Tensor, right: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Tensor:
    """Return the solution X of matrix X = right, by substitution; X matrix = right if not `left`.

    Args:
        matrix: Triangular, shape `(..., n, n)`, n at most 8; the other triangle is not read.
        right: Shape `(..., n, k)`, or `(..., k, n)` if not `left`.
        upper: Whether the upper triangle is the one that counts.
        left: On which side of X the matrix is.
        unitriangular: Whether the diagonal is taken to be 1.

    Raises:
        TraceError: n is larger than 8, or not known while tracing.
    """
    if not left:
        return solve_triangular(matrix.mT, right.mT, upper=not upper, unitriangular=unitriangular).mT
    rows = list(range(_size("solve_triangular", matrix)))
    solved: list[Tensor] = []
    for i in reversed(rows) if upper else rows:
        rest = right[..., i : i + 1, :]
        if solved:
            known = slice(i + 1, None) if upper else slice(None, i)
            rest = rest - (matrix[..., i, known, None] * torch.cat(solved, -2)).sum(-2, keepdim=True)
        row = rest if unitriangular else rest / matrix[..., i : i + 1, i : i + 1]
        solved = [row, *solved] if upper else [*solved, row]
    return torch.cat(solved, -2)


def triangular_solve(
    right: Tensor, matrix: Tensor, upper: bool = True, transpose: bool = False, unitriangular: bool = False
) -> tuple[Tensor, Tensor]:
    """Return what `torch.triangular_solve` does: the solution, and a copy of the matrix."""
    used, upper = (matrix.mT, not upper) if transpose else (matrix, upper)
    return solve_triangular(used, right, upper=upper, unitriangular=unitriangular), matrix.clone()


def cholesky_solve(right: Tensor, factor: Tensor, upper: bool = False) -> Tensor:
    """Return the solution X of A X = right, where `factor` is the Cholesky factor of A."""
    lower = factor.mT if upper else factor
    return solve_triangular(lower.mT, solve_triangular(lower, right, upper=False), upper=True)


def cholesky_inverse(factor: Tensor, upper: bool = False) -> Tensor:
    """Return the inverse of A, where `factor` is its Cholesky factor."""
    return cholesky_solve(torch.eye(factor.shape[-1], dtype=factor.dtype).expand_as(factor), factor, upper)


def log_determinant(matrix: Tensor) -> Tensor:
    """Return the logarithm of the determinant of symmetric positive definite matrices, shape `(..., n, n)`.

    It is twice the sum of the logarithms on the diagonal of the Cholesky factor, which neither overflows nor
    underflows.
    """
    return 2 * cholesky(matrix).diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _size(function: str, matrix: Tensor) -> int:
    size = matrix.shape[-1]
    if not isinstance(size, int) or size > LARGEST:
        raise TraceError(
            f"{function} of {size} x {size} matrices has no ONNX form here, only up to {LARGEST} x {LARGEST}; take a "
            f"diagonal normal (Normal(...).to_event(1)) or a LowRankMultivariateNormal of rank {LARGEST} or less, or "
            f"compute the factor outside of the program"
        )
    return size
