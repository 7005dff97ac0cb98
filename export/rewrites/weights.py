"""Weights that a rule may change."""

from __future__ import annotations

import numpy as np
from onnxscript import ir


def replaceable(*values: ir.Value) -> bool:
    """Whether values are constants that nothing else uses, so that a changed one can take the place of each."""
    return all(value.const_value is not None and len(value.uses()) == 1 for value in values)


def array_of(value: ir.Value) -> np.ndarray:
    """Return the numbers of a constant; `replaceable` says whether it is one."""
    return ir.convenience.get_const_tensor(value).numpy()  # type: ignore[union-attr]  # replaceable saw to it
