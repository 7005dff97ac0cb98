"""Softplus in operators that ONNX Runtime vectorizes."""

from __future__ import annotations

from typing import Any

from onnxscript import ir
from onnxscript.rewriter import MatchResult, pattern

from .verdict import verdict

_LOWEST_THRESHOLD = 17.0
_SHIFT, _TOP, _FALL, _SHARE = 0.69329822, 0.92893283, 0.57414444, 0.92378388
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


class HiddenSoftplus(pattern.RewriteRuleClassBase):
    """Relu(x) - Log(Sigmoid(Abs(x))) → the same to 1e-6 without a logarithm, where only products read it.

    ONNX Runtime's Log is two thirds of a softplus' time. With s = sigmoid(-|x| - log 2), which is in (0, 1/3],
    log(1 + exp(-|x|)) = 2 atanh(s), and 2 atanh(s) / s is nearly a fraction in s² with one pole. The numbers, a shift
    near log 2 among them, have the least largest error, 2e-7. A HardSigmoid, one operator, is the fraction's
    denominator, a line of s². Batches take 0.95 to 0.98 of the reference network's time by this, and one row, by five
    more operators a softplus, 1.04 to 1.08.
    """

    def pattern(self, op: Any, x: Any) -> Any:
        """Match the softplus that `FastSoftplus` writes."""
        return op.Sub(op.Relu(x), op.Log(op.Sigmoid(op.Abs(x))), _outputs=["softplus"])

    def check(self, op: Any, *_values: Any, **bound: Any) -> MatchResult:  # noqa: ARG002 - op is the rule's
        """Take what products multiply with weights: in a scale, a weight or a sum of pixels, an error would count."""
        softplus = bound["softplus"]
        multiplied = all(
            use.node.op_type in _PRODUCTS
            and use.idx == 0
            and ir.convenience.get_const_tensor(use.node.inputs[1]) is not None
            for use in softplus.uses()
        )
        return verdict(multiplied and not softplus.is_graph_output())

    def rewrite(self, op: Any, x: ir.Value, **_bound: Any) -> Any:
        """Return `Relu(x) + s / (top - fall s²) + share s`."""
        s = op.Sigmoid(op.Sub(op.Constant(value_float=-_SHIFT), op.Abs(x)))
        fraction = op.Div(s, op.HardSigmoid(op.Mul(s, s), alpha=-_FALL, beta=_TOP))
        return op.Add(op.Relu(x), op.Add(fraction, op.Mul(s, op.Constant(value_float=_SHARE))))


class CoarseSoftplus(pattern.RewriteRuleClassBase):
    """A hidden softplus → Relu(x) + HardSigmoid(Abs(x))⁸, to 0.0029.

    For graphs in integers, which take 0.88 to 0.92 of the time with it. What their products round is off by more, and
    the models in `models/` that int8 takes lose nothing of their ELBO by this.
    log(1 + exp(-|x|)) is nearly (b - a |x|)⁸, and nearly 0 where that line has come to 0; a HardSigmoid is a line that
    ends there. Of all powers the eighth comes nearest; b and a have the least largest error.
    """

    def pattern(self, op: Any, x: Any, shift: Any, share: Any) -> Any:
        """Match the softplus that `HiddenSoftplus` writes; an exported graph has no other Sigmoid of that kind."""
        s = op.Sigmoid(op.Sub(shift, op.Abs(x)))
        return op.Add(op.Relu(x), op.Add(op.Div(s, op.HardSigmoid(op.Mul(s, s))), op.Mul(s, share)))

    def rewrite(self, op: Any, x: ir.Value, **_bound: Any) -> Any:
        """Return `Relu(x) + HardSigmoid(Abs(x))⁸`."""
        power = op.HardSigmoid(op.Abs(x), alpha=-_SLOPE, beta=_BEND)
        for _ in range(3):
            power = op.Mul(power, power)
        return op.Add(op.Relu(x), power)
