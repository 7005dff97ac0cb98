"""Observations as rows: their preprocessing and binarization, and the range, mean and scale of their values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from edgevae import Preprocessing

from ..config import Binarize
from ..device import forked_rng
from ..errors import DatasetError

_LARGEST_UINT8 = 255.0
_ROWS_AT_ONCE = 4096
_BINARIZATION_SEED = 0
VALUES_AT_ONCE = 2**22
"""How many values are read at once, so that memory stays small."""


@runtime_checkable
class Images(Protocol):
    """Observations as rows. A float32 tensor of shape `(num_images, *data_shape)` is one."""

    @property
    def shape(self) -> torch.Size:
        """Shape `(num_images, *data_shape)`."""

    @property
    def device(self) -> torch.device:
        """The device of the rows that indexing returns."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def __getitem__(self, index: slice | Tensor, /) -> Tensor:
        """Return rows, float32 in the model's range, shape `(rows, *data_shape)`; `index` is a slice or int64."""


class Rows:
    """Observations in the dtype in which they are stored, in memory or in a mapped file; indexing converts them.

    They implement `Images`: indexing returns copies, float32 in the model's range, so that a file is never written to.

    Args:
        stored: Shape `(num_stored, *data_shape)`, any dtype of numbers; it may be a view of a mapped file.
        preprocessing: What is applied to the stored values.
        index: Which of the stored rows these are, int64; by default all.
        numbers: The rows' numbers in the file, int64, shape `(rows,)`; by default `index`.
        name: The file or folder, for messages.
        value_range: Smallest and largest of the stored values.
    """

    def __init__(
        self,
        stored: Tensor,
        preprocessing: Preprocessing,
        index: Tensor | None = None,
        *,
        numbers: Tensor | None = None,
        name: str = "images",
        value_range: tuple[float, float] | None = None,
    ) -> None:
        self.preprocessing = preprocessing
        self.name = name
        self.value_range = value_range
        self._stored = stored
        self._index = index
        self._numbers = index if numbers is None else numbers

    def __repr__(self) -> str:
        return f"<Rows of {self.name}: {self.dtype}, shape {tuple(self.shape)}>"

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._stored) if self._index is None else len(self._index)

    @property
    def shape(self) -> torch.Size:
        """Shape `(num_images, *data_shape)`."""
        return torch.Size((len(self), *self._stored.shape[1:]))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the rows are stored; indexing returns float32."""
        return self._stored.dtype

    @property
    def stored(self) -> Tensor:
        """Everything that is stored, other rows included, shape `(num_stored, *data_shape)`."""
        return self._stored

    @property
    def device(self) -> torch.device:
        """The device of the rows."""
        return self._stored.device

    def __getitem__(self, index: slice | Tensor, /) -> Tensor:
        """Return rows, float32 in the model's range, shape `(rows, *data_shape)`; `index` is a slice or int64."""
        if self._index is not None:
            stored = self._stored[self._index[index]]
        else:
            stored = self._stored[index].clone() if isinstance(index, slice) else self._stored[index]
        return preprocess(stored, self.preprocessing).contiguous()

    def take(self, index: Tensor) -> Rows:
        """Return some of the rows, int64 of shape `(rows,)`, without reading them."""
        chosen = index if self._index is None else self._index[index]
        numbers = None if self._numbers is None else self._numbers[index.to(self._numbers.device)]
        return Rows(
            self._stored, self.preprocessing, chosen, numbers=numbers, name=self.name, value_range=self.value_range
        )

    def to(self, device: torch.device) -> Rows:
        """Return the rows on a device, in their stored dtype; the same object if they are there already."""
        if self.device == device:
            return self
        moved = torch.empty(self.shape, dtype=self.dtype, device=device)
        for start in range(0, len(self), _ROWS_AT_ONCE):  # a mapped file may be larger than the memory
            some = slice(start, start + _ROWS_AT_ONCE)
            moved[some] = (self._stored[some] if self._index is None else self._stored[self._index[some]]).to(device)
        return Rows(moved, self.preprocessing, numbers=self._numbers, name=self.name, value_range=self.value_range)

    def numbers(self, rows: Tensor) -> Tensor:
        """Return the numbers that rows have in the file, counted from 0; int64, shape `(rows,)` each, on the CPU."""
        return rows.cpu() if self._numbers is None else self._numbers.cpu()[rows.cpu()]


def row_numbers(images: Images, rows: Tensor) -> tuple[int, ...]:
    """Return the numbers of rows, counted from 0: in their file, where that is known, or else in the set.

    Args:
        images: The set.
        rows: Indices, int64, shape `(rows,)`.
    """
    return tuple((images.numbers(rows) if isinstance(images, Rows) else rows).tolist())


def preprocess(stored: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return stored values as the model sees them: float32, of the same shape, on the same device.

    With a scale that is `(values - low) / (high - low)`; without one, uint8 divided by 255, and other numbers as they
    are. The runtime does the same, to the bit on the CPU.
    """
    values = stored.to(torch.float32)
    if preprocessing.scale is not None:
        # Tensors and not numbers: on a GPU PyTorch would multiply with the reciprocal of a number.
        low, high = (torch.full((), end, device=stored.device) for end in preprocessing.scale)
        return (values - low) / (high - low)
    if stored.dtype == torch.uint8:
        return values / torch.full((), _LARGEST_UINT8, device=stored.device)
    return values


def evenly_spaced(num_rows: int, count: int) -> Tensor:
    """Return the numbers of up to `count` rows of `num_rows`, evenly spaced: the first may all be of one class."""
    count = min(count, num_rows)
    return torch.arange(count) * num_rows // count


def binarize(images: Tensor, how: Binarize) -> Tensor:
    """Binarize images.

    Args:
        images: Values in [0, 1], any shape.
        how: `none` leaves them; `threshold` is 1 above one half; `stochastic` draws 0 or 1 from PyTorch's generator,
            with the grey value as the probability of 1.
    """
    if how == "threshold":
        return (images > 0.5).to(images.dtype)
    return torch.bernoulli(images) if how == "stochastic" else images


def binarize_once(images: Tensor, how: Binarize) -> Tensor:
    """Binarize images with a fixed seed, so that test sets compare; PyTorch's generators stay as they are."""
    with forked_rng(images.device):
        torch.manual_seed(_BINARIZATION_SEED)
        return binarize(images, how)


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


def check_range(images: Images, unit_interval: bool, *, trained: bool = False) -> None:
    """Check that values lie where a likelihood needs them, before a training or an evaluation begins.

    Args:
        images: Observations. The range of `Rows` is known since they were opened; tensors are read.
        unit_interval: Whether they must lie in [0, 1]: the likelihood's `unit_interval`.
        trained: Whether the model is trained already, so that another likelihood is no remedy.

    Raises:
        DatasetError: They do not; the message names the range and the remedies.
    """
    if not unit_interval:
        return
    if isinstance(images, Rows) and images.value_range is not None:
        _check_stored_range(images, *images.value_range, trained)
        return
    ends = torch.stack([torch.stack(part.aminmax()) for _, part in _parts(images)])  # NaN stays NaN
    low, high = (float(end) for end in ends.aminmax())
    other = "" if trained else ", or take --likelihood normal"
    if not 0 <= low <= high <= 1:
        raise DatasetError(
            f"images must be in [0, 1] for this likelihood, got values from {low:g} to {high:g}, first in row "
            f"{_first_outside(images, 0, 1)} (counted from 0); divide pixels of 0 to 255 by 255{other}"
        )


def _check_stored_range(rows: Rows, low: float, high: float, trained: bool) -> None:
    scale = rows.preprocessing.scale
    if scale is None and rows.dtype == torch.uint8:
        return
    # Integers 0 and 1 are refused, too: a bundle could not tell whether 1 is the largest possible value.
    lowest, highest = torch.tensor(scale or (0, 1), dtype=torch.float32).tolist()
    inside = lowest <= low <= high <= highest
    if inside and (scale is not None or rows.dtype.is_floating_point):
        return
    got = f"got {str(rows.dtype).removeprefix('torch.')} values from {low:g} to {high:g}"
    if not inside:
        got += f", first in row {_first_outside(rows.stored, lowest, highest)} (counted from 0)"
    if scale is not None:
        other = "" if trained else ", or leave it out and take --likelihood normal"
        raise DatasetError(
            f"{rows.name} must hold values in [{scale[0]:g}, {scale[1]:g}], as --scale says, {got}; "
            f"give --scale {low:g},{high:g}{other}"
        )
    other = "" if trained else ", or take --likelihood normal"
    raise DatasetError(
        f"{rows.name} must hold floats in [0, 1] or uint8 for this likelihood, {got}; say with --scale LOW,HIGH "
        f"which values become 0 and 1, like --scale {low:g},{high:g}{other}"
    )


def _first_outside(images: Images, low: float, high: float) -> int:
    """Return the number of the first row with a value outside of the range; there must be one."""
    for start, part in _parts(images):
        values = part.to(torch.float32)
        inside = (low <= values) & (values <= high)  # NaN is not
        found = (~inside).flatten(1).any(1).nonzero()
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
        per_feature: Whether each of the `data_dim` values of an observation gets its own, as for the columns of a
            table; otherwise all share one.

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
        before, count = count, count + len(values)
        step = deviations.mean(0)
        squares = squares + (deviations - step).square().sum(0) + step.square() * (before * len(values) / count)
        mean = mean + step * (len(values) / count)
    scale = torch.where(low < high, (squares / max(count - 1, 1)).sqrt(), 1.0)
    if per_feature:
        return tuple(mean.tolist()), tuple(scale.tolist())
    return float(mean), float(scale)


def _parts(images: Images) -> Iterator[tuple[int, Tensor]]:
    """Yield some rows at a time, with the number of the first."""
    rows = max(1, VALUES_AT_ONCE // max(1, math.prod(images.shape[1:])))
    for start in range(0, len(images), rows):
        yield start, images[start : start + rows]
