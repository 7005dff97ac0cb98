"""Stochastic variational inference on a VAE, one epoch at a time."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator

import pyro
import torch
from pyro.infer import SVI
from pyro.optim import Adam  # type: ignore[attr-defined]  # Pyro makes its optimizers at import
from pyro.params.param_store import StateDict
from torch import Tensor

from train._binarize import binarize
from train._config import ModelConfig, TrainingConfig
from train._device import forked_rng
from train._elbo import evaluating
from train._errors import DatasetError, DivergedError
from train._labels import check_label_values
from train._objective import ScaleLatent, beta_at, objective_of
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
        device: Where the weights live. The images given to `fit_epoch` must be there.
    """

    def __init__(self, model_config: ModelConfig, training_config: TrainingConfig, device: torch.device) -> None:
        self.config = training_config
        self._device = device
        self._param_state: StateDict = {"params": {}, "constraints": {}}
        with forked_rng(device):
            torch.manual_seed(training_config.seed)
            self.vae = VAE(model_config).to(device)
            self._rng_state = self._get_rng_state()
        model, elbo = objective_of(self.vae, training_config.num_particles, training_config.jit)
        self._latent = ScaleLatent(training_config.beta)
        optimizer = Adam({"lr": training_config.learning_rate})
        self._svi = SVI(self._latent(model), self._latent(self.vae.guide), optimizer, elbo)
        self._epoch = 0
        self._validated = False

    def fit_epoch(
        self,
        images: Tensor,
        on_step: Callable[[float], None] = lambda _loss: None,
        should_stop: Callable[[], bool] = lambda: False,
        *,
        labels: Tensor | None = None,
    ) -> float:
        """Pass once over `images` in a new random order, one step of `SVI` a batch.

        Args:
            images: Shape `(num_images, ...)`, float32, on the trainer's device; in [0, 1] unless the likelihood takes
                any range.
            on_step: Called after each step with the batch's loss, in nats an image.
            should_stop: Asked after each step; `True` ends the epoch there.
            labels: Integers, shape `(num_images,)`, on the trainer's device; for a conditional model.

        Returns:
            The mean loss of the images seen, in nats an image: `-elbo`, its latent part weighted by `beta`.

        Raises:
            DatasetError: The images are out of range.
            DivergedError: A step's loss is NaN or infinite.
            LabelError: The labels are not those of a model like this.
        """
        self._check(images, labels)
        self._epoch += 1
        self._latent.beta = beta_at(self._epoch, self.config.beta, self.config.beta_warmup)
        total, seen = 0.0, 0
        with self._isolated():
            order = torch.randperm(len(images)).to(self._device)
            for indices in order.split(self.config.batch_size):
                batch = binarize(images[indices], self.config.binarize)
                y = () if labels is None else (labels[indices],)
                with pyro.validation_enabled(not self._validated):  # the first step shows whether shapes are right
                    loss = self._svi.step(batch, *y)
                self._validated = True
                if not math.isfinite(loss):
                    raise DivergedError(
                        f"the loss became {loss} at learning rate {self.config.learning_rate:g}; try a lower one"
                    )
                total, seen = total + loss, seen + len(batch)
                on_step(loss / len(batch))
                if should_stop():
                    break
        return total / seen

    def _check(self, images: Tensor, labels: Tensor | None) -> None:
        check_label_values(labels, len(images), self.vae.config.num_classes)
        low, high = (float(value) for value in images.aminmax())
        if self.vae.decoder.likelihood.unit_interval and not 0 <= low <= high <= 1:
            raise DatasetError(
                f"images must be in [0, 1] for likelihood {self.vae.config.likelihood}, got values from {low:g} to "
                f"{high:g}; divide pixels of 0 to 255 by 255, or take likelihood normal"
            )
        if not self._validated:
            self._check_shapes(images[:2], None if labels is None else labels[:2])

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
