"""The values of observations: that they are numbers, that a likelihood takes them, their mean and scale."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..errors import DatasetError
from ..images import Images
from .rows import Rows

_VALUES_AT_ONCE = 2**22


def value_range(stored: Tensor, path: Path) -> tuple[float, float]:
    """Return the smallest and the largest of stored values, read once from the first to the last.

    Raises:
        DatasetError: A value is NaN or infinite, in float32 or as stored; the message names the first such row.
    """
    low, high = math.inf, -math.inf
    for start, part in _parts(stored):
        values = part.to(torch.float32)
        ends = torch.stack(values.aminmax())
        if not torch.isfinite(ends).all():
            row = start + int((~torch.isfinite(values.flatten(1)).all(1)).nonzero()[0])
            raise DatasetError(
                f"{path}: row {row} (counted from 0) holds NaN, infinity, or a number too large for float32; "
                "leave the row out, or fill in what is missing"
            )
        low, high = min(low, float(ends[0])), max(high, float(ends[1]))
    return low, high


def check_range(images: Images, unit_interval: bool) -> None:
    """Check that values lie where a likelihood needs them, before a training begins.

    Args:
        images: Observations. Of `Rows` the range is known since they were opened; tensors are looked through.
        unit_interval: Whether they must lie in [0, 1]: the likelihood's `unit_interval`.

    Raises:
        DatasetError: They do not; the message names the range and the ways out.
    """
    if not unit_interval:
        return
    if isinstance(images, Rows) and images.value_range is not None:
        _check_stored_range(images, *images.value_range)
        return
    ends = [part.aminmax() for _, part in _parts(images)]
    low, high = (float(low) for low in (min(end.min for end in ends), max(end.max for end in ends)))
    if not 0 <= low <= high <= 1:
        raise DatasetError(
            f"images must be in [0, 1] for this likelihood, got values from {low:g} to {high:g}, first in row "
            f"{_first_outside(images, 0, 1)} (counted from 0); divide pixels of 0 to "
            "255 by 255, or take --likelihood normal"
        )


def _check_stored_range(rows: Rows, low: float, high: float) -> None:
    scale = rows.preprocessing.scale
    if scale is None and rows.dtype == torch.uint8:
        return
    # As integers 0 and 1 are refused too: a bundle would not know whether 1 is the whole range or a part of it.
    lowest, highest = torch.tensor(scale or (0, 1), dtype=torch.float32).tolist()
    inside = lowest <= low <= high <= highest
    if inside and (scale is not None or rows.dtype.is_floating_point):
        return
    got = f"got {str(rows.dtype).removeprefix('torch.')} values from {low:g} to {high:g}"
    if not inside:
        got += f", first in row {_first_outside(rows.stored, lowest, highest)} (counted from 0)"
    if scale is not None:
        raise DatasetError(
            f"{rows.name} must hold values in [{scale[0]:g}, {scale[1]:g}], as --scale says, {got}; "
            f"give --scale {low:g},{high:g}, or leave it out and take --likelihood normal"
        )
    raise DatasetError(
        f"{rows.name} must hold floats in [0, 1] or uint8 for this likelihood, {got}; say with --scale LOW,HIGH "
        f"which values become 0 and 1, like --scale {low:g},{high:g}, or take --likelihood normal"
    )


def _first_outside(images: Images, low: float, high: float) -> int:
    """The number of the first row with a value outside of a range; there is one."""
    for start, part in _parts(images):
        values = part.to(torch.float32)
        found = ((values < low) | (values > high)).flatten(1).any(1).nonzero()
        if len(found):
            return start + int(found[0])
    raise AssertionError


def standardisation_of(
    images: Images, per_feature: bool = False
) -> tuple[float, float] | tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of the data, `data_loc` and `data_scale` of a `ModelConfig`.

    Computed in float64 and in parts, which are joined as Chan, Golub & LeVeque do ("Updating Formulae and a Pairwise
    Algorithm for Computing Sample Variances", 1979); the deviation is that of a sample, divided by n - 1. Where all
    values are equal it would be 0: there the scale is 1, and the standardised values are 0.

    Args:
        images: Shape `(num_images, *data_shape)`, in the model's range.
        per_feature: Whether each of the `data_dim` values of an observation has its own, as columns of a table need;
            otherwise there is one for all of them.

    Returns:
        `data_loc` and `data_scale`: two floats, or two tuples of `data_dim` floats.
    """
    width = math.prod(images.shape[1:]) if per_feature else 1
    count = 0
    mean, squares = torch.zeros(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    low, high = torch.full((width,), math.inf), torch.full((width,), -math.inf)
    for _, part in _parts(images):
        values = part.cpu().reshape(-1, width)
        low, high = torch.minimum(low, values.amin(0)), torch.maximum(high, values.amax(0))
        deviations = values.to(torch.float64) - mean
        there, count = count, count + len(values)
        step = deviations.mean(0)
        squares = squares + (deviations - step).square().sum(0) + step.square() * (there * len(values) / count)
        mean = mean + step * (len(values) / count)
    scale = torch.where(low < high, (squares / max(count - 1, 1)).sqrt(), 1.0)
    if per_feature:
        return tuple(mean.tolist()), tuple(scale.tolist())
    return float(mean), float(scale)


def _parts(images: Images) -> Iterator[tuple[int, Tensor]]:
    """Some rows at a time, with the number of the first: enough to be quick, and few enough for any memory."""
    rows = max(1, _VALUES_AT_ONCE // max(1, math.prod(images.shape[1:])))
    for start in range(0, len(images), rows):
        yield start, images[start : start + rows]
