"""How large a graph's constants say that something is to be.

What is known of each value is one number: the product of its elements, if they hang on constants alone; infinity where
they do, but by operators that are not followed; `None` if they hang on what the graph is given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from ._model_spec import MAX_VALUES

Known: TypeAlias = "float | None"

# Operators whose outputs are as large as the elements of these inputs say.
_SIZED: dict[str, Sequence[int]] = {
    "AffineGrid": (1,),
    "BlackmanWindow": (0,),
    "CenterCropPad": (1,),
    "Col2Im": (0,),
    "ConstantOfShape": (0,),
    "DFT": (1,),
    "Expand": (1,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1),
    "OneHot": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Resize": (2, 3),
    "Tile": (1,),
    "Upsample": (1,),
}
_SIZES = {
    *("pads", "strides", "dilations", "kernel_shape", "output_shape", "output_padding", "output_height"),
    *("output_width", "sampling_ratio", "hidden_size", "scales", "height_scale", "width_scale"),
}
_KEEP = {"Abs", "Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"}


def product(numbers: Iterable[float]) -> float:
    """Return the product of some numbers' distances from 1 on the scale of factors: of a half as of a double."""
    return math.prod(max(abs(float(number)), 1 / abs(float(number))) for number in numbers if number)


def of_node(operator: str, given: Sequence[Known]) -> Known:
    """Return what is known of a node's outputs, for what is known of its inputs."""
    followed = [known for known in given if known is not None]
    if len(followed) < len(given):
        return None
    if operator in _KEEP:
        return followed[0] if followed else math.inf
    return math.prod(followed) if operator == "Concat" else math.inf


def too_large(operator: str, given: Mapping[int, Known]) -> bool:
    """Whether constants among a node's inputs, by their places, ask for more than any model of ours needs."""
    return _beyond(given.get(place) for place in _SIZED.get(operator, ()))


def attribute_too_large(name: str, known: Known) -> bool:
    """Whether an attribute asks for more than any model of ours needs."""
    return name in _SIZES and _beyond([known])


def _beyond(known: Iterable[Known]) -> bool:
    return math.prod(value for value in known if value is not None) > MAX_VALUES
