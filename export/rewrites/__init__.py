"""Rewrites of an exported ONNX graph. Some make it numerically accurate, the others make it faster."""

from __future__ import annotations

from collections.abc import Sequence

from onnxscript import ir
from onnxscript.rewriter import pattern, rewrite

from .rules import (
    AlignedLog,
    AlignedSum,
    CoarseSoftplus,
    EarlyNeg,
    EarlyRelu,
    ExactSigmoid,
    FastSoftplus,
    FastTorchSoftplus,
    JoinedHeads,
    NegatedConvolution,
    NegatedProduct,
)
from .transposed import FROM_TRANSPOSED, LastDoublings, SmallDoubling

__all__ = ["FROM_TRANSPOSED", "rewrite_for_integers", "rewrite_graph"]

# Each tuple is one pass over the graph; the order of the passes matters:
# - ExactSigmoid comes before the softplus rules, which write a Sigmoid of their own that must stay.
# - PyTorch's softplus contains a plain Softplus, so FastTorchSoftplus comes before FastSoftplus.
# - A Neg moves before a reshape, then into a convolution, before that is split by LastDoublings or SmallDoubling.
# - LastDoublings needs two adjacent layers, so it comes before SmallDoubling rewrites one of them.
_FOR_ACCURACY = ((ExactSigmoid, AlignedSum, AlignedLog),)
_FOR_SPEED = (
    (FastTorchSoftplus, EarlyRelu, EarlyNeg),
    (FastSoftplus, NegatedProduct, NegatedConvolution, JoinedHeads),
    (LastDoublings,),
    (SmallDoubling,),
)


def rewrite_graph(model: ir.Model, *, optimize: bool = True) -> ir.Model:
    """Apply the rewrites.

    Args:
        model: The graph as PyTorch's exporter wrote it.
        optimize: Whether to apply the rewrites for speed too; those for accuracy are always applied.
    """
    for rules in (*_FOR_ACCURACY, *_FOR_SPEED) if optimize else _FOR_ACCURACY:
        model = _apply(model, rules)
    model.graph.sort()  # JoinedHeads may put a node behind the first reader of its output
    return model


def rewrite_for_integers(model: ir.Model) -> ir.Model:
    """Apply the rewrites that are accurate enough only for a graph with int8 products.

    Args:
        model: The graph in float32, rewritten for speed; any other graph is returned unchanged.
    """
    return _apply(model, (CoarseSoftplus,))


def _apply(model: ir.Model, rules: Sequence[type[pattern.RewriteRuleClassBase]]) -> ir.Model:
    rule_set = pattern.RewriteRuleSet([rule.rule() for rule in rules])
    return rewrite(model, pattern_rewrite_rules=rule_set)
