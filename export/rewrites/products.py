"""Fewer and leaner matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnxscript import ir
from onnxscript.rewriter import MatchResult, pattern

from .verdict import verdict
from .weights import array_of, replaceable


class NegatedProduct(pattern.RewriteRuleClassBase):
    """Neg(Gemm(x, weight, bias)) → Gemm(x, -weight, -bias), bit for bit the same.

    The exact sigmoid of a decoder begins with a sign, and its output is the widest tensor of the network: one pass over
    it less.
    """

    operator = "Gemm"

    def pattern(self, op: Any, x: Any, weight: Any, bias: Any) -> Any:
        """Match `Neg(Gemm(x, weight, bias))`."""
        product = getattr(op, self.operator)(x, weight, bias, _allow_other_attributes=True, _outputs=["product"])
        return op.Neg(product)

    def check(self, op: Any, *_values: Any, **bound: Any) -> MatchResult:  # noqa: ARG002 - op is the rule's
        """Take products with weights of their own."""
        return verdict(replaceable(bound["weight"], bound["bias"]))

    def rewrite(self, op: Any, x: ir.Value, weight: ir.Value, bias: ir.Value, product: ir.Value) -> Any:
        """Return `Gemm(x, -weight, -bias)`."""
        node = product.producer()
        negated = (op.initializer(ir.tensor(-array_of(value)), name=f"-{value.name}") for value in (weight, bias))
        return getattr(op, self.operator)(x, *negated, **({} if node is None else node.attributes))


class NegatedConvolution(NegatedProduct):
    """The same for a transposed convolution, the last layer of a convolutional decoder."""

    operator = "ConvTranspose"


class JoinedHeads(pattern.RewriteRuleClassBase):
    """Gemm(h, w1, b1) and Gemm(h, w2, b2) → Split(Gemm(h, [w1; w2], [b1; b2])).

    An encoder's two heads read the same hidden layer: as one product they are read and scheduled once.
    """

    def pattern(self, op: Any, h: Any, w1: Any, b1: Any, w2: Any, b2: Any) -> Any:  # noqa: PLR0917 - bound by name
        """Match the two products, weights transposed as PyTorch's linear layers are."""
        attributes = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
        return op.Gemm(h, w1, b1, **attributes), op.Gemm(h, w2, b2, **attributes)

    def check(self, op: Any, *_values: Any, **bound: Any) -> MatchResult:  # noqa: ARG002 - op is the rule's
        """Take weights of their own and of the same shape."""
        w1, b1, w2, b2 = (bound[name] for name in ("w1", "b1", "w2", "b2"))
        return verdict(w1 is not w2 and replaceable(w1, b1, w2, b2) and array_of(w1).shape == array_of(w2).shape)

    def rewrite(self, op: Any, h: ir.Value, **bound: ir.Value) -> Any:
        """Return the two halves of the joined product."""
        w1, b1, w2, b2 = (bound[name] for name in ("w1", "b1", "w2", "b2"))
        weights, biases = (
            op.initializer(ir.tensor(np.concatenate([array_of(a), array_of(b)])), name=f"{a.name}+{b.name}")
            for a, b in ((w1, w2), (b1, b2))
        )
        product = op.Gemm(h, weights, biases, alpha=1.0, beta=1.0, transA=0, transB=1)
        return op.Split(product, axis=1, num_outputs=2, _outputs=2)
