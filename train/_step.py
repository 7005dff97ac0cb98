"""One step of the fit: what `pyro.infer.SVI.step` does, without waiting for the device."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from torch import Tensor

from train._config import TrainingConfig
from train._objective import ScaleLatent, objective_of
from train._vae import VAE


class Step:
    """Makes steps of Adam on the ELBO of a VAE's model and guide.

    Three things make it quicker than `SVI.step`, and change the numbers by rounding alone: one fused optimizer has all
    parameters, where Pyro makes one for each; the loss stays on the device as a tensor; and Pyro validates the first
    step only, which shows whether shapes are right.

    Args:
        vae: The model; its parameters are moved in place, on the device where they are.
        config: Learning rate and objective.
    """

    def __init__(self, vae: VAE, config: TrainingConfig) -> None:
        model, elbo = objective_of(vae, config.num_particles, config.jit)
        self._differentiable_loss: Any = elbo.differentiable_loss  # Pyro's has no types
        self.latent = ScaleLatent(config.beta)
        self._model, self._guide = self.latent(model), self.latent(vae.guide)
        self._optimizer = torch.optim.Adam(vae.parameters(), lr=config.learning_rate, fused=True)
        self.validated = False

    def __call__(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Make one step; return its loss in nats, summed over the batch, a scalar on the device.

        Args:
            x: Observations, shape `(batch, ...)`.
            y: Labels, shape `(batch,)`, for a conditional model.
        """
        given = (x,) if y is None else (x, y)
        with pyro.validation_enabled(not self.validated):
            loss: Tensor = self._differentiable_loss(self._model, self._guide, *given)
            loss.backward()
        self.validated = True
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.detach()
