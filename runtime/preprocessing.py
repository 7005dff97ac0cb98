"""Preprocessing of the data, the same in training and in the runtime."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .model_spec import ModelSpec
from .record import MAX_VALUES, Record, Size

FloatArray = NDArray[np.float32]


class Preprocessing(Record, frozen=True):
    """What was done to the training data, and is done to the observations that callers pass.

    Without a scale, uint8 is divided by 255 unless `divide_uint8` says otherwise; other numbers are taken as they are.

    Args:
        scale: `(low, high)`: numbers of any kind, uint8 too, are given in this range and become [0, 1]. A model's
            outputs stay in [0, 1]; `raw` scales them back.
        resize: `(height, width)` to which image files are resized, with Pillow's bilinear filter.
        grey: Whether image files in colour are made grey, as Pillow does (ITU-R 601-2 luma).
        channels_last: Whether observations may also be images of shape `(height, width, channels)`.
        divide_uint8: Whether uint8 without a scale is divided by 255, as pixels are.

    Raises:
        ValueError: `scale` is no range in float32, or `resize` no size.
    """

    scale: tuple[float, float] | None = None
    resize: tuple[Size, Size] | None = None
    grey: bool = False
    channels_last: bool = False
    divide_uint8: bool = True

    def __post_init__(self) -> None:
        if self.resize is not None and min(self.resize) < 1:
            raise ValueError(f"resize must be a height and a width of at least 1, got {self.resize}")
        if self.resize is not None and math.prod(self.resize) > MAX_VALUES:
            raise ValueError(f"resize must be at most {MAX_VALUES} pixels, got {self.resize}")
        if self.scale is not None:
            low, span = _ends(self.scale)
            if not (math.isfinite(low) and 0 < span < math.inf):
                raise ValueError(
                    f"scale must be two finite numbers that float32 tells apart, the lower first, got {self.scale}"
                )

    def scaled(self, values: FloatArray) -> FloatArray:
        """Scale values as callers give them to the model's range; float32 both."""
        if self.scale is None:
            return values
        low, span = _ends(self.scale)
        return (values - low) / span

    def raw(self, values: FloatArray) -> FloatArray:
        """Scale values in the model's range back to those that callers give, clipped to the scale; float32 both."""
        if self.scale is None:
            return values
        low, span = _ends(self.scale)
        return np.clip(low + values * span, low, np.float32(self.scale[1]))

    def channels_first(self, array: NDArray[Any], data_shape: tuple[int, ...]) -> NDArray[Any]:
        """Move the channels of images first if they may come last, and do; return any other array as it is."""
        if self.channels_last and len(data_shape) == 3 and array.shape[1:] == (*data_shape[1:], data_shape[0]):
            return np.moveaxis(array, -1, 1)
        return array

    @property
    def text(self) -> str:
        """What is done, in words; empty where nothing is."""
        said = []
        if self.scale is not None:
            said.append(f"values from {self.scale[0]:g} to {self.scale[1]:g} become 0 to 1")
        if self.grey:
            said.append("image files are made grey")
        if self.resize is not None:
            said.append(f"image files are resized to {self.resize[0]} high, {self.resize[1]} wide")
        if self.channels_last:
            said.append("images may have their channels last")
        if not self.divide_uint8:
            said.append("uint8 are taken as numbers")
        return ", ".join(said)


def values_text(model: ModelSpec, preprocessing: Preprocessing | None) -> str:
    """Say which values observations may have."""
    if preprocessing is not None and preprocessing.scale is not None:
        return f"numbers in [{preprocessing.scale[0]:g}, {preprocessing.scale[1]:g}]"
    return f"float{' in [0, 1]' * model.unit_interval} or uint8"


def _ends(scale: tuple[float, float]) -> tuple[np.float32, np.float32]:
    """Return the lower end and the width of a scale in float32, in which values are scaled."""
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = np.float32(scale[0]), np.float32(scale[1])
        return low, np.float32(high - low)
