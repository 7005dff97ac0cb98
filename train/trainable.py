"""What a training needs of a model, whoever wrote it."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pyro.params.param_store import StateDict
from torch import Tensor, nn

from .config import AnyModelConfig, TrainingConfig

if TYPE_CHECKING:
    from .elbo import RowTerms
    from .objective import ScaleLatent


class Trainable(nn.Module, abc.ABC):
    """A model and its guide: a `VAE`, or a Pyro program of a user's own (`ProgramModel`).

    Its `state_dict` is what a run keeps.

    Attributes:
        config: What it is.
        param_state: Pyro's parameter store while it is trained.
    """

    config: AnyModelConfig

    def __init__(self) -> None:
        super().__init__()
        self.param_state: StateDict = {"params": {}, "constraints": {}}

    @property
    @abc.abstractmethod
    def summary(self) -> str:
        """The model in a line."""

    @property
    @abc.abstractmethod
    def unit_interval(self) -> bool:
        """Whether the data must lie in [0, 1]."""

    @property
    @abc.abstractmethod
    def num_units(self) -> int:
        """Dimensions of z for which `terms` has a KL each, and that `encode` returns; 0 if z is not one normal site."""

    @property
    @abc.abstractmethod
    def has_means(self) -> bool:
        """Whether `reconstruct_img` can be called."""

    @property
    @abc.abstractmethod
    def values_a_row(self) -> int:
        """About how many numbers a row takes in memory."""

    @abc.abstractmethod
    def fitted(self) -> Sequence[Tensor]:
        """Return the parameters that a training changes."""

    @abc.abstractmethod
    def is_latent(self, site: str) -> bool:
        """Return whether beta weighs a site."""

    @abc.abstractmethod
    def loss_of(
        self, config: TrainingConfig, latent: ScaleLatent, batch_mean: Callable[[Tensor], Tensor]
    ) -> Callable[..., Tensor]:
        """Return the loss: a function of `x` and, where the model sees labels, `y`, in nats summed over the batch.

        Args:
            config: How to train.
            latent: To wrap model and guide in.
            batch_mean: See `DeviceELBO`.

        Raises:
            ConfigError: The model has no such objective.
        """

    @abc.abstractmethod
    def terms(self, x: Tensor, y: Tensor | None) -> RowTerms:
        """Return the terms of the ELBO for one draw of z, with noise from PyTorch's generator.

        Args:
            x: Observations, shape `(batch, ...)`.
            y: Labels, shape `(batch,)`, where the model sees labels.
        """

    @abc.abstractmethod
    def weigher(self, x: Tensor, y: Tensor | None) -> Callable[[int], Tensor]:
        """Return a function that draws z, count times a row, and returns log p(x, z) - log q(z|x), `(count, batch)`."""

    @abc.abstractmethod
    def encode(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return `z_loc` and `z_scale` of q(z|x), shape `(batch, num_units)` each."""

    @abc.abstractmethod
    def reconstruct_img(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Encode `x`, sample z from q(z|x), decode: the mean of p(x|z), shape `(batch, data_dim)`."""

    @abc.abstractmethod
    def check_rows(self, x: Tensor, y: Tensor | None, loss: Callable[..., Tensor]) -> None:
        """Check that the model takes such rows, before the first step.

        Args:
            x: A few observations.
            y: Their labels.
            loss: What `loss_of` returned.
        """

    @abc.abstractmethod
    def check_exportable(self) -> None:
        """Check that the model can be exported.

        Raises:
            TraceError: A function cannot be exported; the message names the line of the user's program.
        """
