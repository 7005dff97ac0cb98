"""Between the data's own units and standardised values, inside the networks and so inside of exported graphs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Constant = float | tuple[float, ...]


class Standardisation(nn.Module):
    """Constants of a model's configuration: they move with the model, and are no part of its weights.

    Args:
        data_loc: Mean of the data, one number or `data_dim`.
        data_scale: Standard deviation of the data, likewise, positive.
    """

    data_loc: float | Tensor
    data_scale: float | Tensor

    def __init__(self, data_loc: Constant, data_scale: Constant) -> None:
        super().__init__()
        self.changes = (data_loc, data_scale) != (0.0, 1.0)
        for name, value in (("data_loc", data_loc), ("data_scale", data_scale)):
            if isinstance(value, tuple):
                self.register_buffer(name, torch.tensor(value, dtype=torch.float32), persistent=False)
            else:
                setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        """Return `(x - data_loc) / data_scale`, for `x` of shape `(batch, data_dim)`."""
        return (x - self.data_loc) / self.data_scale if self.changes else x

    def loc_of(self, standardised: Tensor) -> Tensor:
        """Return means of standardised values in the data's units, shape `(..., data_dim)`."""
        return self.data_loc + self.data_scale * standardised

    def scale_of(self, standardised: Tensor) -> Tensor:
        """Return standard deviations of standardised values in the data's units, shape `(data_dim,)` or `()`."""
        return self.data_scale * standardised
