"""Transposed convolutions with stride 2, which double an image.

ONNX Runtime computes one image by image, as a product and a sum of what overlaps: at a fifth of the rate of its
convolutions on a processor, and hardly faster with two threads. Convolutions make the phases of what it makes (see
`_phases`). To put them together would take as long again, and is done where it is least. Fewer convolutions, which
read a few zeros, are chosen over more without: those are faster in large batches, and slower for a single row.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnxscript import ir
from onnxscript.rewriter import MatchResult, pattern

from .phases import OF_TRANSPOSED, Axis, axes_of, convolution
from .verdict import verdict
from .weights import array_of

_PHASES = range(2)


class LastDoublings(pattern.RewriteRuleClassBase):
    """ConvTranspose(Relu(ConvTranspose(x))) → DepthToSpace(Σ Conv(Relu(Conv(x)))), a sum over even and odd rows.

    The last two layers of a convolutional decoder take most of its time. What the first of them makes is never put
    together: convolutions of its phases make the sixteen images that the second one's output is put together from.
    """

    def pattern(self, op: Any, x: Any, w1: Any, b1: Any, w2: Any, b2: Any) -> Any:  # noqa: PLR0917 - bound by name
        """Match the two layers."""
        half = op.ConvTranspose(x, w1, b1, _allow_other_attributes=True, _outputs=["half"])
        return op.ConvTranspose(op.Relu(half), w2, b2, _allow_other_attributes=True, _outputs=["full"])

    def check(self, op: Any, *_values: Any, **bound: Any) -> MatchResult:  # noqa: ARG002 - op is the rule's
        """Take layers that double exactly, a second one that is not hidden and no more work than the first.

        The second one's convolutions read more zeros than weights, of which a row alone has to wait for the reading.
        """
        first, second = _both_axes(bound)
        if not first or not second or not all(axis.doubles for axis in (*first, *second)):
            return verdict(matches=False)
        hidden = any(use.node.op_type == "Relu" for use in bound["full"].uses())
        return verdict(not hidden and _work(bound["w2"], second) <= _work(bound["w1"], first))

    def rewrite(self, op: Any, x: ir.Value, **bound: ir.Value) -> Any:
        """Return the two layers, of which the second one's output alone is put together."""
        first, second = _both_axes(bound)
        w1, b1, w2, b2 = (bound[name] for name in ("w1", "b1", "w2", "b2"))
        parts: list[Any] = []
        for rows, name in zip(_PHASES, ("even", "odd"), strict=True):
            windows = first[0].window([rows]), first[1].window(_PHASES)
            half = op.Relu(convolution(op, x, w1, b1, windows, name=name))
            windows = second[0].window(range(4), 2, [rows]), second[1].window(range(4), 2, _PHASES)
            parts.append(convolution(op, half, w2, None if parts else b2, windows, name=name))
        return op.DepthToSpace(op.Add(*parts), blocksize=4, mode="CRD")


def _both_axes(bound: dict[str, ir.Value]) -> tuple[list[Axis], list[Axis]]:
    return axes_of(bound["half"], bound["w1"], bound["b1"]), axes_of(bound["full"], bound["w2"], bound["b2"])


def _work(weight: ir.Value, axes: list[Axis]) -> int:
    """Return how many products a transposed convolution takes for a row."""
    return array_of(weight).size * math.prod(axis.inputs for axis in axes)


class SmallDoubling(pattern.RewriteRuleClassBase):
    """Relu(ConvTranspose(x)) → Relu(Conv(x)) · order, where the image is small.

    A product with zeros and ones puts pixels in their order, exactly, and faster than ONNX Runtime moves single ones.
    """

    def pattern(self, op: Any, x: Any, weight: Any, bias: Any) -> Any:
        """Match a hidden layer."""
        return op.Relu(op.ConvTranspose(x, weight, bias, _allow_other_attributes=True, _outputs=["maps"]))

    def check(self, op: Any, *_values: Any, **bound: Any) -> MatchResult:  # noqa: ARG002 - op is the rule's
        """Take images whose order is no more work than the layer is."""
        axes = axes_of(bound["maps"], bound["weight"], bound["bias"])
        if not axes or any(axis.window(_PHASES).end < 0 for axis in axes):
            return verdict(matches=False)
        order = len(array_of(bound["bias"])) * math.prod(axis.outputs for axis in axes) ** 2
        return verdict(order <= _work(bound["weight"], axes))

    def rewrite(self, op: Any, x: ir.Value, weight: ir.Value, bias: ir.Value, maps: ir.Value) -> Any:
        """Return the layer, whose four phases are put together."""
        axes = axes_of(maps, weight, bias)
        windows = [axis.window(_PHASES) for axis in axes]
        phases = op.Relu(convolution(op, x, weight, bias, windows, name="phases"))
        height, width = (axis.outputs for axis in axes)
        rows, columns = np.indices((height, width))
        order = np.zeros((2, 2, -(-height // 2), -(-width // 2), height, width), np.float32)
        order[rows % 2, columns % 2, rows // 2, columns // 2, rows, columns] = 1
        channels, pixels = len(array_of(bias)), height * width
        apart = op.Reshape(phases, op.Constant(value_ints=[0, channels, order.size // pixels]))
        name = f"{OF_TRANSPOSED}{weight.name}:order"
        together = op.MatMul(apart, op.initializer(ir.tensor(order.reshape(-1, pixels)), name=name))
        return op.Reshape(together, op.Constant(value_ints=[0, channels, height, width]))
