"""The one objective that does not fall into a sum over a batch's rows, for several processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from train._latents import LATENT_SITE
from train._objective import DeviceELBO
from train._processes import Processes


class SharedFreeBits(DeviceELBO):
    """`DeviceELBO` with free bits, whose KL is averaged over the rows of all processes.

    Args:
        num_particles: Draws of z an observation.
        free_bits: Nats of each latent dimension's KL that cost nothing.
        processes: That have a part of the batch each.
    """

    def __init__(self, num_particles: int, free_bits: float, processes: Processes) -> None:
        super().__init__(num_particles)
        self._threshold, self._processes = free_bits, processes

    def _loss_of(self, model_trace: Any, guide_trace: Any) -> Tensor:
        site = guide_trace.nodes[LATENT_SITE]
        q = site["fn"].base_dist
        kl = (q.loc**2 + q.scale**2 - 1) / 2 - q.scale.log()
        given_back = len(kl) * torch.relu(self._threshold - self._processes.mean(kl)).sum()
        return super()._loss_of(model_trace, guide_trace) + site["scale"] * given_back
