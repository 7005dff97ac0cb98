"""The objective, apart from the model: which ELBO, and how much the latent weighs in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyro.infer import JitTrace_ELBO, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.poutine.messenger import Messenger
from torch import Tensor

from train._errors import ConfigError
from train._latents import COMPONENT_SITE, LATENT_SITE
from train._vae import VAE

Objective = Trace_ELBO | TraceEnum_ELBO


def objective_of(vae: VAE, num_particles: int = 1, jit: bool = False) -> tuple[Callable[..., Tensor], Objective]:
    """Return the model to train or evaluate, and the ELBO that is right for it.

    A model with a discrete site has it enumerated, and summed out by `TraceEnum_ELBO`; any other is `Trace_ELBO`'s. The
    closed form of the KL (`TraceMeanField_ELBO`) is never used: it would be wrong for a hierarchy.

    Args:
        vae: The model.
        num_particles: Draws of z an observation.
        jit: Compile the ELBO.

    Raises:
        ConfigError: `jit`, and the model has a discrete site: Pyro's compiled enumeration breaks on a batch of one.
    """
    if vae.latent.enumerated:
        if jit:
            raise ConfigError(f"jit does not go with latent {vae.config.latent}, which is enumerated; drop one")
        return config_enumerate(vae.model), TraceEnum_ELBO(num_particles, max_plate_nesting=1)
    if jit:
        return vae.model, JitTrace_ELBO(num_particles, ignore_jit_warnings=True)
    return vae.model, Trace_ELBO(num_particles)  # with a max_plate_nesting, Pyro would not validate shapes left of it


class ScaleLatent(Messenger):
    """Multiplies the log-probability of the latent sites by `beta`, in the model and in the guide that it wraps.

    With Pyro's ELBO this is the beta-VAE's objective, E_q[log p(x|z)] - beta KL(q(z|x) ‖ p(z)) (Higgins et al., 2017).
    `poutine.scale` would scale the observation as well.

    Args:
        beta: Weight of the latent, positive; may be changed between steps.
    """

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"].startswith((LATENT_SITE, COMPONENT_SITE)):
            msg["scale"] = msg["scale"] * self.beta


def beta_at(epoch: int, beta: float, warmup: int) -> float:
    """Return the weight in an epoch: `beta`, reached in equal steps over the first `warmup` epochs, never 0.

    Args:
        epoch: Counted from 1.
        beta: The weight after the warm-up.
        warmup: Number of epochs that it takes; 0 for none.
    """
    return beta * min(1.0, epoch / warmup) if warmup else beta
