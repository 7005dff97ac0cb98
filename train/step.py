"""One step of the fit: what `pyro.infer.SVI.step` does, without waiting for the device."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import pyro
import torch
from torch import Tensor

from .config import TrainingConfig
from .elbo import device_of
from .objective import ScaleLatent, objective_of
from .processes import ALONE, Processes
from .vae import VAE


class Step:
    """Makes steps of Adam on the ELBO of a VAE's model and guide.

    Three things make it quicker than `SVI.step`, and change the numbers by rounding alone: one fused optimizer has all
    parameters, where Pyro makes one for each; the loss stays on the device as a tensor; and Pyro validates the first
    step only, which shows whether shapes are right.

    Args:
        vae: The model; its parameters are moved in place, on the device where they are.
        config: Learning rate, objective and the gradient's largest norm.
        processes: That make the step together, with a part of the batch each.
    """

    def __init__(self, vae: VAE, config: TrainingConfig, processes: Processes = ALONE) -> None:
        jit = config.jit  # which takes for parameters what is registered
        model, elbo = objective_of(vae, config.num_particles, jit, config.free_bits, processes, registered=jit)
        guide = vae.guide if jit else vae.sample_posterior
        self.latent = ScaleLatent(config.beta)
        differentiable_loss: Any = elbo.differentiable_loss  # Pyro's has no types
        loss: Any = functools.partial(differentiable_loss, self.latent(model), self.latent(guide))
        if config.precision == "bf16":
            loss = torch.autocast(device_of(vae).type, torch.bfloat16)(loss)
        self._differentiable_loss, self._processes = processes.shared(vae, loss), processes
        self._clip_norm = config.clip_norm
        self._optimizer = torch.optim.Adam(vae.parameters(), lr=config.learning_rate, fused=True)
        self.validated = False

    def __call__(
        self, x: Tensor, y: Tensor | None = None, learning_rate: float | None = None, batch_size: int | None = None
    ) -> Tensor:
        """Make one step; return its loss in nats, summed over the batch, a scalar on the device.

        Args:
            x: Observations, shape `(batch, ...)`; of several processes this one's part.
            y: Labels, shape `(batch,)`, for a conditional model.
            learning_rate: That of this step and those after it; as before without one.
            batch_size: Observations of all processes together; those of `x` without it.
        """
        given = (x,) if y is None else (x, y)
        with pyro.validation_enabled(not self.validated):
            loss = self._processes.backward(self._differentiable_loss(*given))
        self.validated = True
        (group,) = self._optimizer.param_groups
        if learning_rate is not None:
            group["lr"] = learning_rate
        if self._clip_norm:
            torch.nn.utils.clip_grad_norm_(group["params"], self._clip_norm * (batch_size or len(x)))
        self._optimizer.step()
        for parameter in group["params"]:  # as zero_grad does, which takes 50 us to tell a profiler
            parameter.grad = None
        return loss

    @property
    def learning_rate(self) -> float:
        """The learning rate of the last step."""
        return float(self._optimizer.param_groups[0]["lr"])

    def moments(self) -> dict[str, Tensor]:
        """Return what the optimizer has gathered, by name."""
        state = self._optimizer.state_dict()["state"]
        return {f"{index}.{name}": tensor for index, each in state.items() for name, tensor in each.items()}

    def restore(self, moments: Mapping[str, Tensor]) -> None:
        """Give the optimizer what `moments` returned."""
        state: dict[int, dict[str, Tensor]] = {}
        for path, tensor in moments.items():
            index, name = path.split(".")
            state.setdefault(int(index), {})[name] = tensor
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})
