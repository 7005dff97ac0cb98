"""Elementwise operators before reshapes."""

from __future__ import annotations

from typing import Any

from onnxscript import ir
from onnxscript.rewriter import pattern


class EarlyRelu(pattern.RewriteRuleClassBase):
    """Relu(Reshape(x, shape)) → Reshape(Relu(x), shape), bit for bit the same.

    ONNX Runtime computes a Relu inside the product that it follows, and sees no product behind a reshape: one operator
    less in a convolutional decoder.
    """

    operator = "Relu"

    def pattern(self, op: Any, x: Any, shape: Any) -> Any:
        """Match `Relu(Reshape(x, shape))`."""
        return getattr(op, self.operator)(op.Reshape(x, shape, _allow_other_attributes=True, _outputs=["reshaped"]))

    def rewrite(self, op: Any, x: ir.Value, shape: ir.Value, reshaped: ir.Value) -> Any:
        """Return `Reshape(Relu(x), shape)`."""
        node = reshaped.producer()
        early = getattr(op, self.operator)(x)
        early.type, early.shape = x.type, x.shape  # as rules for the layers around it want to know
        return op.Reshape(early, shape, **({} if node is None else node.attributes))


class EarlyNeg(EarlyRelu):
    """The same for the sign that an exact sigmoid begins with: the layer before takes it into its weights."""

    operator = "Neg"
