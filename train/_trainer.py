"""Stochastic variational inference on a VAE, one epoch at a time."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator

import pyro
import torch
from pyro.params.param_store import StateDict
from torch import Tensor

from train._batches import batches
from train._binarize import binarize
from train._config import ModelConfig, TrainingConfig
from train._device import float32_products, forked_rng
from train._elbo import evaluating
from train._errors import DatasetError, DivergedError
from train._labels import check_label_values
from train._objective import beta_at
from train._step import Step
from train._terms import elbo_terms
from train._vae import VAE


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
    """

    def __init__(self, model_config: ModelConfig, training_config: TrainingConfig, device: torch.device) -> None:
        self.config = training_config
        self._device = device
        self._param_state: StateDict = {"params": {}, "constraints": {}}
        with forked_rng(device):
            torch.manual_seed(training_config.seed)
            self.vae = VAE(model_config).to(device)
            self._rng_state = self._get_rng_state()
        self._step = Step(self.vae, training_config)
        self._epoch = 0

    def fit_epoch(
        self,
        images: Tensor,
        on_step: Callable[[Tensor], None] = lambda _loss: None,
        should_stop: Callable[[], bool] = lambda: False,
        *,
        labels: Tensor | None = None,
    ) -> float:
        """Pass once over `images` in a new random order, one step of Adam on the ELBO a batch.

        Nothing in a step waits for the device, except in Pyro's own ELBO of a mixture and of `jit`.

        Args:
            images: Shape `(num_images, ...)`, float32, in [0, 1] unless the likelihood takes any range; on the
                trainer's device, or on the CPU where that has no room for them.
            on_step: Called after each step with the batch's loss, in nats an image, a scalar on the device: whoever
                reads its value waits for it.
            should_stop: Asked after each step; `True` ends the epoch there.
            labels: Integers, shape `(num_images,)`, where the images are; for a conditional model.

        Returns:
            The mean loss of the images seen, in nats an image: `-elbo`, its latent part weighted by `beta`.

        Raises:
            DatasetError: The images are out of range, or on another device.
            DivergedError: A step's loss was NaN or infinite; raised after the epoch's last step.
            LabelError: The labels are not those of a model like this.
        """
        self._check(images, labels)
        self._epoch += 1
        self._step.latent.beta = beta_at(self._epoch, self.config.beta, self.config.beta_warmup)
        total, seen = torch.zeros((), dtype=torch.float64, device=self._device), 0
        with self._isolated():
            order = torch.randperm(len(images))
            for batch, y in batches(images, labels, order, self.config.batch_size, self._device):
                loss = self._step(binarize(batch, self.config.binarize), y)
                total, seen = total + loss, seen + len(batch)
                on_step(loss / len(batch))
                if should_stop():
                    break
        mean = float(total) / seen  # NaN or infinite if one step's loss was
        if not math.isfinite(mean):
            raise DivergedError(
                f"the loss became {mean} in epoch {self._epoch} at learning rate {self.config.learning_rate:g}; "
                "try a lower one"
            )
        return mean

    def _check(self, images: Tensor, labels: Tensor | None) -> None:
        check_label_values(labels, len(images), self.vae.config.num_classes)
        if images.device.type not in {self._device.type, "cpu"}:
            raise DatasetError(f"images must be on {self._device} or on the CPU, got {images.device}")
        low, high = (float(value) for value in images.aminmax())
        if self.vae.decoder.likelihood.unit_interval and not 0 <= low <= high <= 1:
            raise DatasetError(
                f"images must be in [0, 1] for likelihood {self.vae.config.likelihood}, got values from {low:g} to "
                f"{high:g}; divide pixels of 0 to 255 by 255, or take likelihood normal"
            )
        if not self._step.validated:
            first_two = torch.arange(len(images))[:2]
            self._check_shapes(*next(batches(images, labels, first_two, 2, self._device)))

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
            forked_rng(self._device),
            float32_products(self.config.tf32),
            warnings.catch_warnings(),
        ):
            # JitTrace_ELBO stands on torch.jit, which PyTorch has deprecated without a replacement in Pyro.
            warnings.filterwarnings("ignore", message=r".*torch\.jit\.", category=FutureWarning)
            warnings.filterwarnings("ignore", message=r".*torch\.jit\.", category=DeprecationWarning)
            # Pyro warns of a loss that is NaN; here it is an error, raised where it is seen.
            warnings.filterwarnings("ignore", message="Encountered", category=UserWarning)
            self._set_rng_state(self._rng_state)
            yield
            self._rng_state = self._get_rng_state()

    def _get_rng_state(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        if self._device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self._device))
        return states

    def _set_rng_state(self, state: list[Tensor]) -> None:
        torch.set_rng_state(state[0])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(state[1], self._device)
