"""The objective, apart from the model: how much the latent weighs in it."""

from __future__ import annotations

from typing import Any

from pyro.poutine.messenger import Messenger

_LATENT = "latent"


class ScaleLatent(Messenger):
    """Multiplies the log-probability of the latent site by `beta`, in the model and in the guide that it wraps.

    With Pyro's ELBO this is the beta-VAE's objective, E_q[log p(x|z)] - beta KL(q(z|x) ‖ p(z)) (Higgins et al., 2017).
    `poutine.scale` would scale the observation as well.

    Args:
        beta: Weight of the latent, positive; may be changed between steps.
    """

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == _LATENT:
            msg["scale"] = msg["scale"] * self.beta


def beta_at(epoch: int, beta: float, warmup: int) -> float:
    """Return the weight in an epoch: `beta`, reached in equal steps over the first `warmup` epochs, never 0.

    Args:
        epoch: Counted from 1.
        beta: The weight after the warm-up.
        warmup: Number of epochs that it takes; 0 for none.
    """
    return beta * min(1.0, epoch / warmup) if warmup else beta
