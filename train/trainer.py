"""Stochastic variational inference on a VAE, one epoch at a time."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator

import pyro
import torch
from pyro.params.param_store import StateDict
from torch import Tensor

from .batches import batches
from .binarization import binarize
from .checkpoint import Checkpoint
from .config import ModelConfig, TrainingConfig
from .data import Images
from .device import check_bf16, float32_products, forked_rng
from .elbo import evaluating
from .errors import DatasetError, RunError
from .finite import FiniteLosses
from .generators import Generators
from .labels import check_label_values
from .objective import beta_at
from .position import Position
from .processes import ALONE, Processes
from .schedule import learning_rate_at
from .step import Step
from .terms import elbo_terms
from .vae import VAE

WEIGHTS = "vae."
"""What the names of the model's weights begin with in a checkpoint."""

_MOMENTS, _GENERATORS, _PROCESSES = "optimizer.", "generator.", "processes"
_ROWS_AT_ONCE = 4096


class Trainer:
    """Fits one VAE, and keeps all that is global in Pyro and PyTorch to itself.

    Pyro has one parameter store a process, in which a second model of the same names would never move; PyTorch has one
    random generator a device. A trainer enters a store and a generator state of its own for each call, and leaves the
    process's as they were. So trainings in one process do not touch each other, interleaved ones included; threads
    do, because the globals are shared between them.

    Args:
        model_config: The model's sizes. Its weights are drawn on the CPU, so that a seed means the same on any device.
        training_config: Seed, batch size, learning rate, objective.
        device: Where the weights live.
        processes: That fit the model together. Each is to make the same calls, all with the same images: it takes its
            part of each batch, and has noise of its own.

    Raises:
        DeviceError: The device has no quick instructions for the configuration's precision.

    Attributes:
        vae: The model.
        halvings: How often the learning rate has been halved.
    """

    def __init__(
        self,
        model_config: ModelConfig,
        training_config: TrainingConfig,
        device: torch.device,
        processes: Processes = ALONE,
    ) -> None:
        if training_config.precision == "bf16":
            check_bf16(device)
        self.config = training_config
        self.halvings = 0
        self._device, self._processes = device, processes
        self._param_state: StateDict = {"params": {}, "constraints": {}}
        with forked_rng(device):
            torch.manual_seed(training_config.seed)
            self.vae = VAE(model_config).to(device)
            self._generators = Generators(device, processes, training_config.seed)
        self._step = Step(self.vae, training_config, processes)
        self._position = Position(device, processes)

    @property
    def epoch(self) -> int:
        """Epochs that have come to their end."""
        return self._position.epoch

    @property
    def steps(self) -> int:
        """Steps made, those of earlier epochs included."""
        return self._position.steps

    @property
    def in_epoch(self) -> bool:
        """Whether an epoch was begun that has not come to its end; the next `fit_epoch` goes on with it."""
        return self._position.seen > 0

    @property
    def learning_rate(self) -> float:
        """The learning rate of the last step."""
        return self._step.learning_rate

    @property
    def beta(self) -> float:
        """The latent's weight in the last step."""
        return self._step.latent.beta

    def fit_epoch(
        self,
        images: Images,
        on_step: Callable[[Tensor], None] = lambda _loss: None,
        should_stop: Callable[[], bool] = lambda: False,
        *,
        labels: Tensor | None = None,
    ) -> float:
        """Pass once over `images` in a new random order, one step of Adam on the ELBO a batch.

        Where the call before was stopped in its epoch, this one passes over the rest of it. Nothing in a step waits for
        the device, except in Pyro's own ELBO of a mixture and of `jit`.

        Args:
            images: Shape `(num_images, ...)`, float32, in [0, 1] unless the likelihood takes any range; on the
                trainer's device, or on the CPU where that has no room for them.
            on_step: Called after each step with the batch's loss, in nats an image, a scalar on the device: whoever
                reads its value waits for it.
            should_stop: Asked after each step; `True` ends the call there. All processes must get the same answer.
            labels: Integers, shape `(num_images,)`, where the images are; for a conditional model.

        Returns:
            The mean loss of the epoch's images seen so far, in nats an image: `-elbo`, its latent part weighted by
            `beta`.

        Raises:
            ConfigError: A batch would leave a process without images.
            DatasetError: The images are out of range, on another device, or others than those that the epoch began
                with.
            DivergedError: A step's loss was NaN or infinite.
            LabelError: The labels are not those of a model like this.
        """
        self._check(images, labels)
        position, losses = self._position, FiniteLosses(self._device)
        self._step.latent.beta = beta_at(position.epoch + 1, self.config.beta, self.config.beta_warmup)
        with self._isolated():
            rest = position.order_of(len(images))[position.seen :]
            for part, y in batches(
                images, labels, rest, self.config.batch_size, self._device, processes=self._processes
            ):
                batch_size = min(self.config.batch_size, len(images) - position.seen)
                progress = position.epoch + (position.seen + batch_size) / len(images)
                rate = learning_rate_at(self.config, progress, self.halvings)
                loss = self._step(binarize(part, self.config.binarize), y, rate, batch_size)
                position.advance(loss, batch_size)
                losses.add(loss, position.steps, rate)
                on_step(loss / batch_size)
                if should_stop():
                    break
            losses.check()
        mean = position.mean_loss()
        if position.seen == len(images):
            position.end_epoch()
        return mean

    def checkpoint(self) -> Checkpoint:
        """Return this moment of all processes, from which `restore` goes on; not within a call of `fit_epoch`."""
        state = self._position.state()
        tensors = dict(state.tensors)
        for prefix, part in (
            (WEIGHTS, self.vae.state_dict()),
            (_MOMENTS, self._step.moments()),
            (_GENERATORS, self._generators.state()),
        ):
            tensors |= {prefix + name: tensor for name, tensor in part.items()}
        notes = {**state.notes, "halvings": self.halvings, _PROCESSES: self._processes.world_size}
        return Checkpoint(tensors, notes)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go to the moment of a checkpoint of the same configuration; on the CPU bit for bit.

        Raises:
            RunError: It is another model's, another kind of device's, or another number of processes'.
        """
        self._generators.restore(checkpoint.named(_GENERATORS), int(checkpoint.notes.get(_PROCESSES, 1)))
        try:
            self.vae.load_state_dict(checkpoint.named(WEIGHTS))
            self._step.restore(checkpoint.named(_MOMENTS))
            self._position.restore(checkpoint)
            self.halvings = int(checkpoint.notes["halvings"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise RunError(f"the checkpoint is not one of a training like this: {error}") from error

    def _check(self, images: Images, labels: Tensor | None) -> None:
        check_label_values(labels, len(images), self.vae.config.num_classes)
        if images.device.type not in {self._device.type, "cpu"}:
            raise DatasetError(f"images must be on {self._device} or on the CPU, got {images.device}")
        self._processes.check_batches(len(images), self.config.batch_size)
        if not self._step.validated:
            self._check_range(images)
            first_two = torch.arange(len(images))[:2]
            self._check_shapes(*next(batches(images, labels, first_two, 2, self._device)))

    def _check_range(self, images: Images) -> None:
        if not self.vae.decoder.likelihood.unit_interval:
            return
        parts = [images[start : start + _ROWS_AT_ONCE].aminmax() for start in range(0, len(images), _ROWS_AT_ONCE)]
        low, high = (float(torch.stack(ends).aminmax()[index]) for index, ends in enumerate(zip(*parts, strict=True)))
        if not 0 <= low <= high <= 1:
            raise DatasetError(
                f"images must be in [0, 1] for likelihood {self.vae.config.likelihood}, got values from {low:g} to "
                f"{high:g}; divide pixels of 0 to 255 by 255, or take likelihood normal"
            )

    def _check_shapes(self, x: Tensor, y: Tensor | None) -> None:
        """See that p(x|z) is one number a row: where batch and data are of one size, a missing to_event would fit."""
        eps = [x.new_zeros((len(x), size)) for size in self.vae.config.z_dims]
        with evaluating(self.vae), forked_rng(self._device):
            shape = elbo_terms(self.vae, x, eps, y).log_px_z.shape
        if shape != (len(x),):
            raise ValueError(f"log p(x|z) must be one number a row, got shape {tuple(shape)}; declare .to_event(1)")

    @contextlib.contextmanager
    def _isolated(self) -> Iterator[None]:
        """Enter this trainer's parameter store and generator state; keep what the body makes of them."""
        with (
            pyro.get_param_store().scope(self._param_state),
            self._generators.entered(),
            float32_products(self.config.tf32),
            warnings.catch_warnings(),
        ):
            # JitTrace_ELBO stands on torch.jit, which PyTorch has deprecated without a replacement in Pyro.
            warnings.filterwarnings("ignore", message=r".*torch\.jit\.", category=FutureWarning)
            warnings.filterwarnings("ignore", message=r".*torch\.jit\.", category=DeprecationWarning)
            # Pyro warns of a loss that is NaN; here it is an error, raised where it is seen.
            warnings.filterwarnings("ignore", message="Encountered", category=UserWarning)
            yield
