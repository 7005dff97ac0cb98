"""What a training maximises: Pyro's ELBO, beta, free bits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from pyro.infer import JitTrace_ELBO, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.poutine.messenger import Messenger
from torch import Tensor

from .errors import ConfigError
from .latents import COMPONENT_SITE, LATENT_SITE, kl_to_standard_normal

if TYPE_CHECKING:
    from .vae import VAE

Objective = Trace_ELBO | TraceEnum_ELBO


def mean_of_rows(rows: Tensor) -> Tensor:
    """Return the mean over the first axis."""
    return rows.mean(0)


class DeviceELBO(Trace_ELBO):
    """`Trace_ELBO` that never waits for the device: Pyro's own reads the value of each site.

    Args:
        num_particles: Draws of z an observation.
        free_bits: Nats of each latent dimension's KL that cost nothing.
        batch_mean: Returns the mean over the rows of all processes, given those of this process.
    """

    def __init__(
        self, num_particles: int, free_bits: float = 0.0, batch_mean: Callable[[Tensor], Tensor] = mean_of_rows
    ) -> None:
        # Without max_plate_nesting, so that Pyro validates all axes.
        super().__init__(num_particles)  # type: ignore[no-untyped-call]  # Pyro's has no types
        self._free_bits, self._batch_mean = free_bits, batch_mean

    def differentiable_loss(self, model: Any, guide: Any, *args: Tensor) -> Tensor:
        """Return the loss in nats, summed over the batch, a scalar whose gradient is the ELBO's."""
        traces_of: Any = self._get_traces  # Pyro's has no types
        losses = [self._loss_of(*traces) for traces in traces_of(model, guide, args, {})]
        return functools.reduce(torch.add, losses) / len(losses)

    def _loss_of(self, model_trace: Any, guide_trace: Any) -> Tensor:
        sampled = [site for site in guide_trace.nodes.values() if site["type"] == "sample"]
        if all(site["fn"].has_rsample for site in sampled):
            loss: Tensor = guide_trace.log_prob_sum() - model_trace.log_prob_sum()
            return loss + self._free_bits_loss(guide_trace) if self._free_bits else loss
        with_score_function: Any = self._differentiable_loss_particle
        value, surrogate = with_score_function(model_trace, guide_trace)
        return torch.as_tensor(value + (surrogate - surrogate.detach()))

    def _free_bits_loss(self, guide_trace: Any) -> Tensor:
        """Return what free bits add to the loss, in nats, summed over the rows of this process.

        Dimension j of the latent costs max(free_bits, KL_j), where KL_j is averaged over the batch (Kingma et al.,
        "Improved Variational Inference with Inverse Autoregressive Flow", 2016, equation 15). The loss contains KL_j
        already, so this adds max(free_bits - KL_j, 0): below the threshold the two gradients cancel.
        """
        site = guide_trace.nodes[LATENT_SITE]
        q = site["fn"].base_dist
        kl = kl_to_standard_normal(q.loc, q.scale)
        missing = torch.relu(self._free_bits - self._batch_mean(kl)).sum()
        added: Tensor = site["scale"] * len(kl) * missing
        return added


def objective_of(
    vae: VAE,
    num_particles: int = 1,
    jit: bool = False,
    free_bits: float = 0.0,
    batch_mean: Callable[[Tensor], Tensor] = mean_of_rows,
    *,
    registered: bool = True,
) -> tuple[Callable[..., Tensor], Objective]:
    """Return the model to train or evaluate, and its ELBO.

    `TraceEnum_ELBO` enumerates a discrete site and sums it out; other models use `Trace_ELBO`. The closed form of
    the KL (`TraceMeanField_ELBO`) is never used: it would be wrong for a hierarchy.

    Args:
        vae: The model.
        num_particles: Draws of z an observation.
        jit: Compile the ELBO.
        free_bits: Nats of each latent dimension's KL that cost nothing.
        batch_mean: See `DeviceELBO`.
        registered: Whether the model registers its parameters with Pyro, as `SVI` and `jit` need. An optimizer that
            was given the parameters does not need it.

    Raises:
        ConfigError: `jit` with a discrete site, as Pyro's compiled enumeration fails for a batch of one; or `free_bits`
            with a latent whose KL has no closed form.
    """
    if free_bits and vae.config.latent != "normal":
        raise ConfigError(f"free_bits go with latent normal, whose KL has a closed form, got {vae.config.latent}")
    model = vae.model if registered else vae.sample_joint
    if vae.latent.enumerated:
        if jit:
            raise ConfigError(f"jit does not go with latent {vae.config.latent}, which is enumerated; drop one")
        return config_enumerate(model), TraceEnum_ELBO(num_particles, max_plate_nesting=1)
    if jit:
        return model, JitTrace_ELBO(num_particles, ignore_jit_warnings=True)
    return model, DeviceELBO(num_particles, free_bits, batch_mean)


def is_latent(site: str) -> bool:
    """Return whether a site of a VAE is a level of z, or a mixture's component."""
    return site.startswith((LATENT_SITE, COMPONENT_SITE))


class ScaleLatent(Messenger):
    """Multiplies the log-probability of the latent sites by `beta`, in the model and in the guide that it wraps.

    With Pyro's ELBO this is the beta-VAE's objective, E_q[log p(x|z)] - beta KL(q(z|x) ‖ p(z)) (Higgins et al., 2017).
    `poutine.scale` would scale the observation as well.

    Args:
        beta: Weight of the latent, positive; may be changed between steps.
        is_latent: Says of a site's name whether it is latent.
    """

    def __init__(self, beta: float, is_latent: Callable[[str], bool] = is_latent) -> None:
        super().__init__()
        self.beta, self._is_latent = beta, is_latent

    def _pyro_sample(self, msg: Any) -> None:
        if self._is_latent(msg["name"]):
            msg["scale"] = msg["scale"] * self.beta
