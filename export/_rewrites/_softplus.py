"""Softplus in operators that ONNX Runtime vectorizes."""

from __future__ import annotations

from typing import Any

from onnxscript import ir
from onnxscript.rewriter import MatchResult, pattern

from export._rewrites._verdict import verdict

_LOWEST_THRESHOLD = 17.0
_BEND, _SLOPE = 0.9555124, 0.09048172
_PRODUCTS = {"Gemm", "MatMul"}


def _softplus(op: Any, x: ir.Value) -> Any:
    """log(1 + exp(x)) = max(x, 0) - log(sigmoid(|x|)): a sigmoid in [1/2, 1], where its approximation is good."""
    return op.Sub(op.Relu(x), op.Log(op.Sigmoid(op.Abs(x))))


class FastSoftplus(pattern.RewriteRuleClassBase):
    """Softplus(x) → Relu(x) - Log(Sigmoid(Abs(x))), the same function to 1e-6.

    ONNX Runtime's Softplus on the CPU is scalar code, and takes half of the time of the reference network in batches of
    32 and more; Sigmoid and Log are vectorized.
    """

    def pattern(self, op: Any, x: Any) -> Any:
        """Match `Softplus(x)`."""
        return op.Softplus(x)

    def rewrite(self, op: Any, x: ir.Value) -> Any:
        """Return `Relu(x) - Log(Sigmoid(Abs(x)))`."""
        return _softplus(op, x)


class FastTorchSoftplus(pattern.RewriteRuleClassBase):
    """Where(x > threshold, x, Softplus(x)) → the same as for Softplus(x).

    PyTorch's softplus is x itself above 20, and its exporter writes that out. There the two agree in float32 anyway:
    log(1 + exp(20)) = 20 + 2e-9.
    """

    def pattern(self, op: Any, x: Any, threshold: Any) -> Any:
        """Match `Where(Greater(x, threshold), x, Softplus(x))`."""
        return op.Where(op.Greater(x, threshold), x, op.Softplus(x))

    def check(self, op: Any, *_values: Any, **bound: Any) -> MatchResult:  # noqa: ARG002 - op is the rule's
        """Take PyTorch's threshold and higher ones only: below 17, float32 would see a step."""
        value = ir.convenience.get_const_tensor(bound["threshold"])
        return verdict(value is not None and value.size == 1 and float(value.numpy()) >= _LOWEST_THRESHOLD)

    def rewrite(self, op: Any, x: ir.Value, **_bound: Any) -> Any:
        """Return `Relu(x) - Log(Sigmoid(Abs(x)))`."""
        return _softplus(op, x)


class CoarseSoftplus(pattern.RewriteRuleClassBase):
    """Relu(x) - Log(Sigmoid(Abs(x))) → Relu(x) + HardSigmoid(Abs(x))⁸, to 0.0029, where only products read it.

    For graphs in integers, of whose time the logarithm would take a fifth. What their products round is off by more,
    and the models in `models/` that int8 takes lose nothing of their ELBO by this.
    log(1 + exp(-|x|)) is nearly (b - a |x|)⁸, and nearly 0 where that line has come to 0; a HardSigmoid is a line that
    ends there. Of all powers the eighth comes nearest; b and a have the least largest error.
    """

    def pattern(self, op: Any, x: Any) -> Any:
        """Match the softplus that `FastSoftplus` writes."""
        return op.Sub(op.Relu(x), op.Log(op.Sigmoid(op.Abs(x))), _outputs=["softplus"])

    def check(self, op: Any, *_values: Any, **bound: Any) -> MatchResult:  # noqa: ARG002 - op is the rule's
        """Take what products multiply with weights: of a scale or a weight, which may be tiny, an error would count."""
        softplus = bound["softplus"]
        multiplied = all(use.node.op_type in _PRODUCTS and use.idx == 0 for use in softplus.uses())
        return verdict(multiplied and not softplus.is_graph_output())

    def rewrite(self, op: Any, x: ir.Value, **_bound: Any) -> Any:
        """Return `Relu(x) + HardSigmoid(Abs(x))⁸`."""
        power = op.HardSigmoid(op.Abs(x), alpha=-_SLOPE, beta=_BEND)
        for _ in range(3):
            power = op.Mul(power, power)
        return op.Add(op.Relu(x), power)
