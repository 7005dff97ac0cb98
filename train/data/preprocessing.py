"""What is done to stored values before a model sees them."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from ..errors import ConfigError

_LARGEST_UINT8 = 255.0


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What was done to the data; the runtime does it again, from what a bundle's manifest says.

    Called with stored values it returns them as the model sees them: `(values - low) / (high - low)` in float32 where
    there is a scale; otherwise uint8 divided by 255, and any other number as it is.

    Args:
        scale: `(low, high)`: values given in this range become [0, 1]. uint8 counts as any other number then.
        resize: `(height, width)` to which image files were resized, with Pillow's bilinear filter.
        grey: Whether image files in colour were made grey, as Pillow does (ITU-R 601-2 luma).
        channels_last: Whether the data were an array of images with the channels behind height and width.
        divide_uint8: Whether the runtime divides uint8 by 255; not where the data were other numbers, beyond [0, 1].

    Raises:
        ConfigError: `scale` is no range in float32, or `resize` no size.
    """

    scale: tuple[float, float] | None = None
    resize: tuple[int, int] | None = None
    grey: bool = False
    channels_last: bool = False
    divide_uint8: bool = True

    def __post_init__(self) -> None:
        if self.scale is not None:
            low, high = torch.tensor(self.scale, dtype=torch.float32).tolist()
            if not (math.isfinite(high - low) and low < high):
                raise ConfigError(
                    f"scale must be two finite numbers that float32 tells apart, the lower first, got {self.scale}"
                )
        if self.resize is not None and min(self.resize) < 1:
            raise ConfigError(f"resize must be a height and a width of at least 1, got {self.resize}")

    def __call__(self, stored: Tensor) -> Tensor:
        """Return stored values of any shape as the model sees them: float32, of the same shape, on the same device."""
        values = stored.to(torch.float32)
        if self.scale is not None:
            # Tensors and not numbers: on a GPU PyTorch would multiply with the reciprocal of a number.
            low, high = (torch.full((), end, device=stored.device) for end in self.scale)
            return (values - low) / (high - low)
        if stored.dtype == torch.uint8:
            return values / torch.full((), _LARGEST_UINT8, device=stored.device)
        return values
