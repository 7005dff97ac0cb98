"""Rewrite rules for activations, reductions and matrix products.

Each rule is a class of ONNX Script's rewriter: `pattern` is the subgraph that it looks for, `check` the conditions
under which it may be replaced, `rewrite` the replacement.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnxscript import ir
from onnxscript.rewriter import MatchResult, pattern

_VECTOR = 16  # float32 values in 64 bytes, the widest vector registers
_LOWEST_THRESHOLD = 17.0  # below, x and softplus(x) differ in float32
_BEND, _SLOPE = 0.9555124, 0.09048172  # least maximum error of CoarseSoftplus
_PRODUCTS = {"Gemm", "MatMul"}
_CONVOLUTIONS = {"Conv", "ConvTranspose"}


def matched(condition: bool) -> MatchResult:
    """Return a match where the condition holds, else a failure."""
    result = MatchResult()
    return result if condition else result.fail("the rule's conditions do not hold")


def replaceable(*values: ir.Value) -> bool:
    """Return whether all values are constants with a single reader, so that a rule may replace them."""
    return all(value.const_value is not None and len(value.uses()) == 1 for value in values)


def array_of(value: ir.Value) -> np.ndarray:
    """Return the array of a constant; check `replaceable` before."""
    return ir.convenience.get_const_tensor(value).numpy()  # type: ignore[union-attr]  # replaceable made sure of it


# Accuracy


class ExactSigmoid(pattern.RewriteRuleClassBase):
    """Sigmoid(x) → 1 / (1 + Exp(-x)).

    ONNX Runtime's Sigmoid on the CPU is a rational approximation with an absolute error of about 1e-7. A probability of
    1e-6 then has a relative error of several per cent, and log p(x|z) of an unlikely observation is off by whole nats.
    This form has a small relative error: it is 0 only where float32 has no smaller number.
    """

    def pattern(self, op: Any, x: Any) -> Any:
        """Match `Sigmoid(x)`."""
        return op.Sigmoid(x)

    def rewrite(self, op: Any, x: ir.Value) -> Any:
        """Return `1 / (1 + Exp(-x))`."""
        one = op.Constant(value_float=1.0)
        return op.Reciprocal(op.Add(op.Exp(op.Neg(x)), one))


# ONNX Runtime computes in vectors of up to 16 values and treats the remainder differently. The order of a sum and the
# last bit of a logarithm then depend on how a row is aligned in memory, that is, on its place in the batch. Rows padded
# to whole vectors give the same bits in every batch.


class AlignedSum(pattern.RewriteRuleClassBase):
    """ReduceSum(x) over the last axis → ReduceSum(Pad(x)), padded with zeros to a multiple of 16 values."""

    def pattern(self, op: Any, x: Any, axes: Any) -> Any:
        """Match `ReduceSum(x, axes)`."""
        return op.ReduceSum(x, axes, _allow_other_attributes=True, _outputs=["total"])

    def check(self, op: Any, *_values: Any, **bound: Any) -> MatchResult:  # noqa: ARG002 - op is the rule's
        """Require a sum over the last axis alone, of rows whose width is not a multiple of 16."""
        x, axes = bound["x"], ir.convenience.get_const_tensor(bound["axes"])
        last = axes is not None and x.shape is not None and axes.numpy().tolist() in ([-1], [len(x.shape) - 1])
        return matched(last and _padding(x) > 0)

    def rewrite(self, op: Any, x: ir.Value, axes: ir.Value, total: ir.Value) -> Any:
        """Return `ReduceSum(Pad(x), axes)`."""
        node = total.producer()
        return op.ReduceSum(_padded(op, x, 0.0), axes, **({} if node is None else node.attributes))


class AlignedLog(pattern.RewriteRuleClassBase):
    """Log(x) → Slice(Log(Pad(x))), padded to a multiple of 16 values a row."""

    def pattern(self, op: Any, x: Any) -> Any:
        """Match `Log(x)`."""
        return op.Log(x)

    def check(self, op: Any, *_values: Any, **bound: Any) -> MatchResult:  # noqa: ARG002 - op is the rule's
        """Require rows whose width is not a multiple of 16."""
        return matched(_padding(bound["x"]) > 0)

    def rewrite(self, op: Any, x: ir.Value) -> Any:
        """Return `Slice(Log(Pad(x)))`."""
        logarithm = op.Log(_padded(op, x, 1.0))
        return op.Slice(logarithm, *(op.Constant(value_ints=[value]) for value in (0, _width(x), -1)))


def _width(x: ir.Value) -> int:
    """Return the number of float32 values in a row; 0 where it is not known or `x` has no rows."""
    if x.dtype != ir.DataType.FLOAT or x.shape is None or len(x.shape) < 2:
        return 0
    size = x.shape[-1]
    return size if isinstance(size, int) else 0


def _padding(x: ir.Value) -> int:
    """Return how many values a row needs to become a multiple of 16."""
    return -_width(x) % _VECTOR


def _padded(op: Any, x: ir.Value, value: float) -> Any:
    axes = 0 if x.shape is None else len(x.shape)
    pads = np.zeros(2 * axes, np.int64)
    pads[-1] = _padding(x)
    return op.Pad(x, op.Constant(value=ir.tensor(pads)), op.Constant(value_float=value))


# Softplus


class FastSoftplus(pattern.RewriteRuleClassBase):
    """Softplus(x) → Relu(x) - Log(Sigmoid(Abs(x))), equal to 1e-6, in hidden layers.

    log(1 + exp(x)) = max(x, 0) - log(sigmoid(|x|)). ONNX Runtime's Softplus on the CPU is scalar code; Sigmoid and Log
    are vectorized, and the approximation of Sigmoid is accurate on [1/2, 1]. The error is absolute: a small softplus,
    such as a scale whose logarithm is taken, would be lost.
    """

    def pattern(self, op: Any, x: Any) -> Any:
        """Match `Softplus(x)`."""
        return op.Softplus(x, _outputs=["softplus"])

    def check(self, op: Any, *_values: Any, **bound: Any) -> MatchResult:  # noqa: ARG002 - op is the rule's
        """Require that only products with constant weights read it."""
        return matched(_is_hidden(bound["softplus"], _PRODUCTS | _CONVOLUTIONS))

    def rewrite(self, op: Any, x: ir.Value, **_bound: Any) -> Any:
        """Return `Relu(x) - Log(Sigmoid(Abs(x)))`."""
        return _fast_softplus(op, x)


class FastTorchSoftplus(pattern.RewriteRuleClassBase):
    """Where(x > threshold, x, Softplus(x)) → the replacement for Softplus(x).

    PyTorch's softplus is x above 20, and its exporter writes the branch out. In float32 both agree there:
    log(1 + exp(20)) = 20 + 2e-9.
    """

    def pattern(self, op: Any, x: Any, threshold: Any) -> Any:
        """Match `Where(Greater(x, threshold), x, Softplus(x))`."""
        return op.Where(op.Greater(x, threshold), x, op.Softplus(x), _outputs=["softplus"])

    def check(self, op: Any, *_values: Any, **bound: Any) -> MatchResult:  # noqa: ARG002 - op is the rule's
        """Require a hidden layer, and a threshold above which x and softplus(x) agree in float32."""
        value = ir.convenience.get_const_tensor(bound["threshold"])
        agrees = value is not None and value.size == 1 and float(value.numpy()) >= _LOWEST_THRESHOLD
        return matched(agrees and _is_hidden(bound["softplus"], _PRODUCTS | _CONVOLUTIONS))

    def rewrite(self, op: Any, x: ir.Value, **_bound: Any) -> Any:
        """Return `Relu(x) - Log(Sigmoid(Abs(x)))`."""
        return _fast_softplus(op, x)


class CoarseSoftplus(pattern.RewriteRuleClassBase):
    """Relu(x) - Log(Sigmoid(Abs(x))) → Relu(x) + HardSigmoid(Abs(x))⁸, with an error of at most 0.0029; for int8.

    Quantized products that read it round by more than that. log(1 + exp(-|x|)) is close to (b - a |x|)⁸ and to 0 where
    that line has reached 0, which is a HardSigmoid. The power, b and a minimize the maximum error.
    """

    def pattern(self, op: Any, x: Any) -> Any:
        """Match what `FastSoftplus` writes."""
        return op.Sub(op.Relu(x), op.Log(op.Sigmoid(op.Abs(x))), _outputs=["softplus"])

    def check(self, op: Any, *_values: Any, **bound: Any) -> MatchResult:  # noqa: ARG002 - op is the rule's
        """Require that only products with constant weights read it: elsewhere, as in a scale, the error would count."""
        return matched(_is_hidden(bound["softplus"], _PRODUCTS))

    def rewrite(self, op: Any, x: ir.Value, **_bound: Any) -> Any:
        """Return `Relu(x) + HardSigmoid(Abs(x))⁸`."""
        power = op.HardSigmoid(op.Abs(x), alpha=-_SLOPE, beta=_BEND)
        for _ in range(3):
            power = op.Mul(power, power)
        return op.Add(op.Relu(x), power)


def _is_hidden(value: ir.Value, products: set[str]) -> bool:
    """Return whether only products with constant weights read a value."""
    return not value.is_graph_output() and all(
        use.node.op_type in products
        and use.idx == 0
        and (weights := use.node.inputs[1]) is not None
        and ir.convenience.get_const_tensor(weights) is not None
        for use in value.uses()
    )


def _fast_softplus(op: Any, x: ir.Value) -> Any:
    return op.Sub(op.Relu(x), op.Log(op.Sigmoid(op.Abs(x))))


# Products


class EarlyRelu(pattern.RewriteRuleClassBase):
    """Relu(Reshape(x, shape)) → Reshape(Relu(x), shape), bit for bit the same.

    ONNX Runtime fuses a Relu with the product before it, but not across a reshape.
    """

    operator = "Relu"

    def pattern(self, op: Any, x: Any, shape: Any) -> Any:
        """Match `Relu(Reshape(x, shape))`."""
        return getattr(op, self.operator)(op.Reshape(x, shape, _allow_other_attributes=True, _outputs=["reshaped"]))

    def rewrite(self, op: Any, x: ir.Value, shape: ir.Value, reshaped: ir.Value) -> Any:
        """Return `Reshape(Relu(x), shape)`."""
        node = reshaped.producer()
        early = getattr(op, self.operator)(x)
        early.type, early.shape = x.type, x.shape  # later rules look at them
        return op.Reshape(early, shape, **({} if node is None else node.attributes))


class EarlyNeg(EarlyRelu):
    """The same for the Neg that an exact sigmoid begins with: `NegatedProduct` then moves it into the weights."""

    operator = "Neg"


class NegatedProduct(pattern.RewriteRuleClassBase):
    """Neg(Gemm(x, weight, bias)) → Gemm(x, -weight, -bias), bit for bit the same.

    A decoder's exact sigmoid begins with a Neg of the network's widest tensor; this saves a pass over it.
    """

    operator = "Gemm"

    def pattern(self, op: Any, x: Any, weight: Any, bias: Any) -> Any:
        """Match `Neg(Gemm(x, weight, bias))`."""
        product = getattr(op, self.operator)(x, weight, bias, _allow_other_attributes=True, _outputs=["product"])
        return op.Neg(product)

    def check(self, op: Any, *_values: Any, **bound: Any) -> MatchResult:  # noqa: ARG002 - op is the rule's
        """Require weights that nothing else reads."""
        return matched(replaceable(bound["weight"], bound["bias"]))

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

    The two heads of an encoder read the same hidden layer; one product reads and schedules it once.
    """

    def pattern(self, op: Any, h: Any, w1: Any, b1: Any, w2: Any, b2: Any) -> Any:  # noqa: PLR0917 - bound by name
        """Match the two products, with transposed weights as in PyTorch's linear layers."""
        attributes = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
        return op.Gemm(h, w1, b1, **attributes), op.Gemm(h, w2, b2, **attributes)

    def check(self, op: Any, *_values: Any, **bound: Any) -> MatchResult:  # noqa: ARG002 - op is the rule's
        """Require weights of the same shape that nothing else reads."""
        w1, b1, w2, b2 = (bound[name] for name in ("w1", "b1", "w2", "b2"))
        return matched(w1 is not w2 and replaceable(w1, b1, w2, b2) and array_of(w1).shape == array_of(w2).shape)

    def rewrite(self, op: Any, h: ir.Value, **bound: ir.Value) -> Any:
        """Return the two halves of the joined product."""
        w1, b1, w2, b2 = (bound[name] for name in ("w1", "b1", "w2", "b2"))
        weights, biases = (
            op.initializer(ir.tensor(np.concatenate([array_of(a), array_of(b)])), name=f"{a.name}+{b.name}")
            for a, b in ((w1, w2), (b1, b2))
        )
        product = op.Gemm(h, weights, biases, alpha=1.0, beta=1.0, transA=0, transB=1)
        return op.Split(product, axis=1, num_outputs=2, _outputs=2)
