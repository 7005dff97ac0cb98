"""A transposed convolution with stride 2 as convolutions.

Its even and odd rows and columns are four images of half its size, its phases, and each is an ordinary convolution of
what it reads (Shi et al., "Is the deconvolution layer the same as a convolutional layer?", 2016, arXiv:1609.07009).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from onnxscript import ir

from .weights import array_of, replaceable

OF_TRANSPOSED = "transposed:"
"""How the names of weights begin that were those of a transposed convolution."""


class Window(NamedTuple):
    """What a convolution reads along one axis.

    Args:
        taps: Zeros and ones, shape `(outputs, phases, width, kernel)`: where the transposed one's weights go.
        begin: How many zeros are read before the first input.
        end: How many behind the last; below 0 where the last is not read.
    """

    taps: np.ndarray
    begin: int
    end: int


class Axis(NamedTuple):
    """One axis: input i goes into output 2 i + k - pad by weight k.

    Args:
        kernel: How many weights there are.
        pad: How many outputs are left out before the first.
        inputs: How many there are.
        outputs: How many there are.
    """

    kernel: int
    pad: int
    inputs: int
    outputs: int

    @property
    def doubles(self) -> bool:
        """Whether each phase is as large as the input."""
        return self.outputs == 2 * self.inputs

    def window(self, outputs: Sequence[int], apart: int = 1, phases: Sequence[int] = (0,)) -> Window:
        """Return how outputs 2 · apart · m + `outputs` are made of inputs apart · n + `phases`, for all m and n."""
        found = [
            (output, phase, offset, weight)
            for output, phase, weight in itertools.product(outputs, phases, range(self.kernel))
            for offset, between in [divmod(output + self.pad - weight - 2 * phase, 2 * apart)]
            if between == 0
        ]
        offsets = [0, *(offset for _, _, offset, _ in found)]
        first, last = min(offsets), max(offsets)
        taps = np.zeros((len(outputs), len(phases), last - first + 1, self.kernel), np.float32)
        for output, phase, offset, weight in found:
            taps[outputs.index(output), phases.index(phase), offset - first, weight] = 1
        count = -(-(self.outputs - outputs[0]) // (2 * apart))
        return Window(taps, -first, count + last - self.inputs // apart)


def axes_of(maps: ir.Value, weight: ir.Value, bias: ir.Value) -> list[Axis]:
    """Return the two axes of a transposed convolution with stride 2; none of one of any other kind.

    Args:
        maps: What it makes.
        weight: Its weight, shape `(channels read, channels made, height, width)`.
        bias: Its bias, one for each channel made.
    """
    node = maps.producer()
    sizes = () if node is None else (_size(node.inputs[0]), _size(maps))
    if node is None or not all(sizes) or not replaceable(weight, bias) or not _is_plain(node):
        return []
    kernels, pads = array_of(weight).shape[2:], node.attributes.get_ints("pads", (0, 0, 0, 0))
    return [Axis(*axis) for axis in zip(kernels, pads[:2], *sizes, strict=True)]


def _is_plain(node: ir.Node) -> bool:
    """Whether a transposed convolution has stride 2, no groups, no gaps, and pads that are given."""
    attributes = node.attributes
    return (
        tuple(attributes.get_ints("strides", ())) == (2, 2)
        and tuple(attributes.get_ints("dilations", (1, 1))) == (1, 1)
        and attributes.get_int("group", 1) == 1
        and attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
        and "output_shape" not in attributes
    )


def convolution(
    op: Any, x: ir.Value, weight: ir.Value, bias: ir.Value | None, windows: Sequence[Window], *, name: str
) -> Any:
    """Return the convolution of `x` that reads `windows`.

    Args:
        op: Makes operators.
        x: Of each channel of the transposed convolution's input the phases of the two windows, shape
            `(batch, channels read * phases, height, width)`.
        weight: The transposed convolution's.
        bias: Its bias, if it is to be added.
        windows: What is read along rows and along columns.
        name: What tells its weights from those of others.

    Returns:
        Of each channel made the outputs of the two windows, shape `(batch, channels made * outputs, height, width)`.
    """
    rows, columns = windows
    kernel = np.einsum("apdk,bqel,iokl->oabipqde", rows.taps, columns.taps, array_of(weight), optimize=True)
    made, _, _, read, *_, height, width = kernel.shape
    outputs, phases = len(rows.taps) * len(columns.taps), rows.taps.shape[1] * columns.taps.shape[1]
    kernel = np.ascontiguousarray(kernel).reshape(made * outputs, read * phases, height, width)
    inputs = [op.initializer(ir.tensor(kernel), name=f"{OF_TRANSPOSED}{weight.name}:{name}")]
    if bias is not None:
        inputs.append(
            op.initializer(ir.tensor(np.repeat(array_of(bias), outputs)), name=f"{OF_TRANSPOSED}{bias.name}:{name}")
        )
    return op.Conv(x, *inputs, pads=[rows.begin, columns.begin, rows.end, columns.end])


def _size(maps: ir.Value | None) -> tuple[int, ...]:
    """Return the known height and width of maps, shape `(batch, channels, height, width)`; else nothing."""
    if maps is None or maps.shape is None or maps.dtype != ir.DataType.FLOAT or len(maps.shape) != 4:
        return ()
    sizes = tuple(size for size in maps.shape[2:] if isinstance(size, int))
    return sizes if len(sizes) == 2 else ()
