"""Rewrites of the exported graph, each with its reason: some keep its numbers right, others make it faster."""

from __future__ import annotations

from collections.abc import Sequence

from onnxscript import ir
from onnxscript.rewriter import pattern, rewrite

from .doublings import LastDoublings, SmallDoubling
from .phases import OF_TRANSPOSED
from .products import JoinedHeads, NegatedConvolution, NegatedProduct
from .reshapes import EarlyNeg, EarlyRelu
from .rows import AlignedLog, AlignedSum
from .sigmoid import ExactSigmoid
from .softplus import CoarseSoftplus, FastSoftplus, FastTorchSoftplus, HiddenSoftplus

__all__ = ["OF_TRANSPOSED", "rewrite_for_integers", "rewrite_graph"]

# In passes: the exact sigmoid must not meet the sigmoid that a fast softplus is made of, and PyTorch's softplus has a
# plain one in it. A sign goes by a reshape, then into a convolution, before that becomes several; and those last layers
# that become one must come before each that becomes several by itself. A hidden softplus is made of a fast one.
_FOR_NUMBERS = ((ExactSigmoid, AlignedSum, AlignedLog),)
_FOR_SPEED = (
    (FastTorchSoftplus, EarlyRelu, EarlyNeg),
    (FastSoftplus, NegatedProduct, NegatedConvolution, JoinedHeads),
    (LastDoublings, HiddenSoftplus),
    (SmallDoubling,),
)


def rewrite_graph(model: ir.Model, *, optimize: bool = True) -> ir.Model:
    """Apply the rewrites.

    Args:
        model: The graph as the exporter wrote it.
        optimize: Whether also those that are there for speed alone.
    """
    for rules in (*_FOR_NUMBERS, *_FOR_SPEED) if optimize else _FOR_NUMBERS:
        model = _with(model, rules)
    model.graph.sort()  # a joined product stands where its second head stood, which may be behind the first one's users
    return model


def rewrite_for_integers(model: ir.Model) -> ir.Model:
    """Apply what is too coarse for float32, and is not for a graph whose products are to be computed in integers.

    Args:
        model: The graph in float32. Nothing changes in one that was not rewritten for speed.
    """
    return _with(model, (CoarseSoftplus,))


def _with(model: ir.Model, rules: Sequence[type[pattern.RewriteRuleClassBase]]) -> ir.Model:
    rule_set = pattern.RewriteRuleSet([rule.rule() for rule in rules])
    return rewrite(model, pattern_rewrite_rules=rule_set)
