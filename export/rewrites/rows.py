"""Rows whose numbers do not depend on where in a batch they stand.

ONNX Runtime computes in vectors of up to 16 values, and what does not fill a vector in another way: a sum's order, and
the last bit of a logarithm, depend on how a row is aligned in memory. The same row in another batch would get another
last bit, and what is computed together would not be what is computed apart. Rows that fill their vectors are safe.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnxscript import ir
from onnxscript.rewriter import MatchResult, pattern

from .verdict import verdict

_ALIGNMENT = 16  # float32 values in 64 bytes, the widest vectors that processors have


class AlignedSum(pattern.RewriteRuleClassBase):
    """ReduceSum(x) over the last axis → ReduceSum(Pad(x)), to a multiple of 16 values; zeros change no sum."""

    def pattern(self, op: Any, x: Any, axes: Any) -> Any:
        """Match `ReduceSum(x, axes)`."""
        return op.ReduceSum(x, axes, _allow_other_attributes=True, _outputs=["total"])

    def check(self, op: Any, *_values: Any, **bound: Any) -> MatchResult:  # noqa: ARG002 - op is the rule's
        """Take sums over the last axis only, of rows that do not fill their last vector."""
        x, axes = bound["x"], ir.convenience.get_const_tensor(bound["axes"])
        last = axes is not None and x.shape is not None and axes.numpy().tolist() in ([-1], [len(x.shape) - 1])
        return verdict(last and _missing(x) > 0)

    def rewrite(self, op: Any, x: ir.Value, axes: ir.Value, total: ir.Value) -> Any:
        """Return `ReduceSum(Pad(x), axes)`."""
        node = total.producer()
        return op.ReduceSum(_padded(op, x, 0.0), axes, **({} if node is None else node.attributes))


class AlignedLog(pattern.RewriteRuleClassBase):
    """Log(x) → Slice(Log(Pad(x))), to a multiple of 16 values a row and back."""

    def pattern(self, op: Any, x: Any) -> Any:
        """Match `Log(x)`."""
        return op.Log(x)

    def check(self, op: Any, *_values: Any, **bound: Any) -> MatchResult:  # noqa: ARG002 - op is the rule's
        """Take rows that do not fill their last vector."""
        return verdict(_missing(bound["x"]) > 0)

    def rewrite(self, op: Any, x: ir.Value) -> Any:
        """Return `Slice(Log(Pad(x)))`."""
        logarithm = op.Log(_padded(op, x, 1.0))
        return op.Slice(logarithm, *(_integers(op, value) for value in (0, _width(x), -1)))


def _width(x: ir.Value) -> int:
    """Return the float32 values in a row; 0 where their number is not known, or there are no rows of them."""
    if x.dtype != ir.DataType.FLOAT or x.shape is None or len(x.shape) < 2:
        return 0
    size = x.shape[-1]
    return size if isinstance(size, int) else 0


def _missing(x: ir.Value) -> int:
    """Return how many values a row needs to fill its last vector."""
    return -_width(x) % _ALIGNMENT


def _padded(op: Any, x: ir.Value, value: float) -> Any:
    """Return `x` with values at the end of each row, to a whole number of vectors."""
    axes = 0 if x.shape is None else len(x.shape)
    pads = np.zeros(2 * axes, np.int64)
    pads[-1] = _missing(x)
    return op.Pad(x, op.Constant(value=ir.tensor(pads)), op.Constant(value_float=value))


def _integers(op: Any, value: int) -> Any:
    return op.Constant(value_ints=[value])
