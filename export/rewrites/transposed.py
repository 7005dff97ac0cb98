"""Transposed convolutions with stride 2, which double an image, rewritten as ordinary convolutions.

ONNX Runtime's CPU kernel for a transposed convolution is slow: image by image, a product and then a sum of the
overlaps. The even and odd rows and columns of its output are four images of half the size, its phases, and each phase
is an ordinary convolution of the input (Shi et al., "Is the deconvolution layer the same as a convolutional layer?",
2016, arXiv:1609.07009). Interleaving the phases costs about as much again, so it is done where it costs least. Few
convolutions that read some zeros are preferred to many without zeros: these are faster for large batches, and slower
for a single row.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from onnxscript import ir
from onnxscript.rewriter import MatchResult, pattern

from .rules import array_of, matched, replaceable

FROM_TRANSPOSED = "transposed:"
"""Prefix of the names of weights that were made from those of a transposed convolution."""

_PHASES = range(2)


class LastDoublings(pattern.RewriteRuleClassBase):
    """ConvTranspose(Relu(ConvTranspose(x))) → DepthToSpace(Σ Conv(Relu(Conv(x)))), a sum over even and odd rows.

    The last two layers take most of a convolutional decoder's time. The phases of the first are not interleaved:
    convolutions of them give the sixteen phases of the second one's output, which are interleaved once.
    """

    def pattern(self, op: Any, x: Any, w1: Any, b1: Any, w2: Any, b2: Any) -> Any:  # noqa: PLR0917 - bound by name
        """Match the two layers."""
        half = op.ConvTranspose(x, w1, b1, _allow_other_attributes=True, _outputs=["half"])
        return op.ConvTranspose(op.Relu(half), w2, b2, _allow_other_attributes=True, _outputs=["full"])

    def check(self, op: Any, *_values: Any, **bound: Any) -> MatchResult:  # noqa: ARG002 - op is the rule's
        """Require layers that double exactly, the second one an output layer with no more work than the first.

        The second one's convolutions read more zeros than weights, which a single row would have to wait for.
        """
        first, second = _both_axes(bound)
        if not first or not second or not all(axis.doubles for axis in (*first, *second)):
            return matched(False)
        hidden = any(use.node.op_type == "Relu" for use in bound["full"].uses())
        return matched(not hidden and _work(bound["w2"], second) <= _work(bound["w1"], first))

    def rewrite(self, op: Any, x: ir.Value, **bound: ir.Value) -> Any:
        """Return the two layers, with the phases interleaved at the end only."""
        first, second = _both_axes(bound)
        w1, b1, w2, b2 = (bound[name] for name in ("w1", "b1", "w2", "b2"))
        parts: list[Any] = []
        for rows, name in zip(_PHASES, ("even", "odd"), strict=True):
            windows = first[0].window([rows]), first[1].window(_PHASES)
            half = op.Relu(_convolution(op, x, w1, b1, windows, name=name))
            windows = second[0].window(range(4), 2, [rows]), second[1].window(range(4), 2, _PHASES)
            parts.append(_convolution(op, half, w2, None if parts else b2, windows, name=name))
        return op.DepthToSpace(op.Add(*parts), blocksize=4, mode="CRD")


class SmallDoubling(pattern.RewriteRuleClassBase):
    """Relu(ConvTranspose(x)) → Relu(Conv(x)) · order, for small images.

    A product with a matrix of zeros and ones interleaves the phases exactly, and faster than ONNX Runtime's transpose.
    """

    def pattern(self, op: Any, x: Any, weight: Any, bias: Any) -> Any:
        """Match a hidden layer."""
        return op.Relu(op.ConvTranspose(x, weight, bias, _allow_other_attributes=True, _outputs=["maps"]))

    def check(self, op: Any, *_values: Any, **bound: Any) -> MatchResult:  # noqa: ARG002 - op is the rule's
        """Require images so small that interleaving takes no more work than the layer."""
        axes = _axes_of(bound["maps"], bound["weight"], bound["bias"])
        if not axes or any(axis.window(_PHASES).end < 0 for axis in axes):
            return matched(False)
        order = len(array_of(bound["bias"])) * math.prod(axis.outputs for axis in axes) ** 2
        return matched(order <= _work(bound["weight"], axes))

    def rewrite(self, op: Any, x: ir.Value, weight: ir.Value, bias: ir.Value, maps: ir.Value) -> Any:
        """Return the layer, its four phases interleaved by a product."""
        axes = _axes_of(maps, weight, bias)
        windows = [axis.window(_PHASES) for axis in axes]
        phases = op.Relu(_convolution(op, x, weight, bias, windows, name="phases"))
        height, width = (axis.outputs for axis in axes)
        rows, columns = np.indices((height, width))
        order = np.zeros((2, 2, -(-height // 2), -(-width // 2), height, width), np.float32)
        order[rows % 2, columns % 2, rows // 2, columns // 2, rows, columns] = 1
        channels, pixels = len(array_of(bias)), height * width
        flat = op.Reshape(phases, op.Constant(value_ints=[0, channels, order.size // pixels]))
        name = f"{FROM_TRANSPOSED}{weight.name}:order"
        interleaved = op.MatMul(flat, op.initializer(ir.tensor(order.reshape(-1, pixels)), name=name))
        return op.Reshape(interleaved, op.Constant(value_ints=[0, channels, height, width]))


def _both_axes(bound: dict[str, ir.Value]) -> tuple[list[_Axis], list[_Axis]]:
    return _axes_of(bound["half"], bound["w1"], bound["b1"]), _axes_of(bound["full"], bound["w2"], bound["b2"])


def _work(weight: ir.Value, axes: list[_Axis]) -> int:
    """Return the number of multiplications of a transposed convolution for a row."""
    return array_of(weight).size * math.prod(axis.inputs for axis in axes)


class _Window(NamedTuple):
    """What a convolution reads along one axis.

    Args:
        taps: Zeros and ones, shape `(outputs, phases, width, kernel)`: where the transposed convolution's weights go.
        begin: Padding before the first input.
        end: Padding behind the last input; negative where the last inputs are not read.
    """

    taps: np.ndarray
    begin: int
    end: int


class _Axis(NamedTuple):
    """One axis of a transposed convolution: input i goes into output 2 i + k - pad with weight k.

    Args:
        kernel: Number of weights.
        pad: Number of outputs that are cut off at the beginning.
        inputs: Number of inputs.
        outputs: Number of outputs.
    """

    kernel: int
    pad: int
    inputs: int
    outputs: int

    @property
    def doubles(self) -> bool:
        """Whether each phase is as large as the input."""
        return self.outputs == 2 * self.inputs

    def window(self, outputs: Sequence[int], step: int = 1, phases: Sequence[int] = (0,)) -> _Window:
        """Return how outputs 2 · step · m + `outputs` depend on inputs step · n + `phases`, for all m and n."""
        found = [
            (output, phase, offset, weight)
            for output, phase, weight in itertools.product(outputs, phases, range(self.kernel))
            for offset, between in [divmod(output + self.pad - weight - 2 * phase, 2 * step)]
            if between == 0
        ]
        offsets = [0, *(offset for _, _, offset, _ in found)]
        first, last = min(offsets), max(offsets)
        taps = np.zeros((len(outputs), len(phases), last - first + 1, self.kernel), np.float32)
        for output, phase, offset, weight in found:
            taps[outputs.index(output), phases.index(phase), offset - first, weight] = 1
        count = -(-(self.outputs - outputs[0]) // (2 * step))
        return _Window(taps, -first, count + last - self.inputs // step)


def _axes_of(maps: ir.Value, weight: ir.Value, bias: ir.Value) -> list[_Axis]:
    """Return the two axes of a transposed convolution with stride 2; none for any other kind.

    Args:
        maps: Its output.
        weight: Its weight, shape `(input channels, output channels, height, width)`.
        bias: Its bias, shape `(output channels,)`.
    """
    node = maps.producer()
    sizes = () if node is None else (_size(node.inputs[0]), _size(maps))
    if node is None or not all(sizes) or not replaceable(weight, bias) or not _is_plain(node):
        return []
    kernels, pads = array_of(weight).shape[2:], node.attributes.get_ints("pads", (0, 0, 0, 0))
    return [_Axis(*axis) for axis in zip(kernels, pads[:2], *sizes, strict=True)]


def _is_plain(node: ir.Node) -> bool:
    """Return whether a transposed convolution has stride 2, one group, no dilation, and explicit padding."""
    attributes = node.attributes
    return (
        tuple(attributes.get_ints("strides", ())) == (2, 2)
        and tuple(attributes.get_ints("dilations", (1, 1))) == (1, 1)
        and attributes.get_int("group", 1) == 1
        and attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
        and "output_shape" not in attributes
    )


def _convolution(
    op: Any, x: ir.Value, weight: ir.Value, bias: ir.Value | None, windows: Sequence[_Window], *, name: str
) -> Any:
    """Return the convolution of `x` that reads `windows`.

    Args:
        op: Makes operators.
        x: For each input channel the phases of the two windows, shape
            `(batch, input channels * phases, height, width)`.
        weight: The transposed convolution's weight.
        bias: Its bias, if it is to be added.
        windows: What is read along rows and along columns.
        name: Suffix of the new weights' names.

    Returns:
        For each output channel the outputs of the two windows, shape
        `(batch, output channels * outputs, height, width)`.
    """
    rows, columns = windows
    kernel = np.einsum("apdk,bqel,iokl->oabipqde", rows.taps, columns.taps, array_of(weight), optimize=True)
    made, _, _, read, *_, height, width = kernel.shape
    outputs, phases = len(rows.taps) * len(columns.taps), rows.taps.shape[1] * columns.taps.shape[1]
    kernel = np.ascontiguousarray(kernel).reshape(made * outputs, read * phases, height, width)
    inputs = [op.initializer(ir.tensor(kernel), name=f"{FROM_TRANSPOSED}{weight.name}:{name}")]
    if bias is not None:
        inputs.append(
            op.initializer(ir.tensor(np.repeat(array_of(bias), outputs)), name=f"{FROM_TRANSPOSED}{bias.name}:{name}")
        )
    return op.Conv(x, *inputs, pads=[rows.begin, columns.begin, rows.end, columns.end])


def _size(maps: ir.Value | None) -> tuple[int, ...]:
    """Return the height and width of maps, shape `(batch, channels, height, width)`; nothing where they are unknown."""
    if maps is None or maps.shape is None or maps.dtype != ir.DataType.FLOAT or len(maps.shape) != 4:
        return ()
    sizes = tuple(size for size in maps.shape[2:] if isinstance(size, int))
    return sizes if len(sizes) == 2 else ()
