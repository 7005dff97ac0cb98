"""Observations that stay as they are stored, and are converted a batch at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from .preprocessing import Preprocessing

_ROWS_AT_ONCE = 4096


class Rows:
    """Observations in the dtype in which they are stored, in memory or in a mapped file; indexing converts them.

    It is one of `Images`: what comes out is float32 in the model's range, copied, so that a file is never written to.

    Args:
        stored: Shape `(num_stored, *data_shape)`, any dtype of numbers; it may be a view of a mapped file.
        preprocessing: What is done to it.
        index: Which of the stored rows these are, int64; all without it.
        name: The file or folder, for messages.
        value_range: Smallest and largest of the stored values.
    """

    def __init__(
        self,
        stored: Tensor,
        preprocessing: Preprocessing,
        index: Tensor | None = None,
        *,
        name: str = "images",
        value_range: tuple[float, float] | None = None,
    ) -> None:
        self.preprocessing = preprocessing
        self.name = name
        self.value_range = value_range
        self._stored = stored
        self._index = index

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
        """In which the rows are stored; they come out as float32."""
        return self._stored.dtype

    @property
    def stored(self) -> Tensor:
        """All that is stored, also what is not among these rows, shape `(num_stored, *data_shape)`."""
        return self._stored

    @property
    def device(self) -> torch.device:
        """Where the rows are, and come out."""
        return self._stored.device

    def __getitem__(self, index: slice | Tensor, /) -> Tensor:
        """Return rows, float32 in the model's range, shape `(rows, *data_shape)`; `index` is a slice or int64."""
        if self._index is not None:
            stored = self._stored[self._index[index]]
        else:
            stored = self._stored[index].clone() if isinstance(index, slice) else self._stored[index]
        return self.preprocessing(stored).contiguous()

    def take(self, index: Tensor) -> Rows:
        """Return some of the rows, int64 of shape `(rows,)`, without reading them."""
        chosen = index if self._index is None else self._index[index]
        return Rows(self._stored, self.preprocessing, chosen, name=self.name, value_range=self.value_range)

    def to(self, device: torch.device) -> Rows:
        """Return the rows on a device, as they are stored; the same where they are there already."""
        if self.device == device:
            return self
        moved = torch.empty(self.shape, dtype=self.dtype, device=device)
        for start in range(0, len(self), _ROWS_AT_ONCE):  # a mapped file may be larger than the memory
            some = slice(start, start + _ROWS_AT_ONCE)
            moved[some] = (self._stored[some] if self._index is None else self._stored[self._index[some]]).to(device)
        return Rows(moved, self.preprocessing, name=self.name, value_range=self.value_range)
