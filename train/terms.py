"""The terms of the ELBO of each observation, from Pyro's own traces."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from .latents import COMPONENT_SITE, site_names
from .objective import objective_of
from .vae import VAE


@dataclasses.dataclass(frozen=True, eq=False)
class ElboTerms:
    """The terms of one draw of z, in nats, shape `(batch,)` each, and the draw.

    Args:
        log_px_z: log p(x|z).
        log_pz: log p(z), of all levels of a hierarchy; a mixture's component is summed out.
        log_qz_x: log q(z|x), of all levels of a hierarchy.
        z: The draw of each level, shape `(batch, size of the level)`, that of z first.
        z_loc: Means of what each level was drawn from.
        z_scale: Their standard deviations.
    """

    log_px_z: Tensor
    log_pz: Tensor
    log_qz_x: Tensor
    z: tuple[Tensor, ...]
    z_loc: tuple[Tensor, ...]
    z_scale: tuple[Tensor, ...]

    @property
    def elbo(self) -> Tensor:
        """log_px_z + log_pz - log_qz_x, shape `(batch,)`."""
        return self.log_px_z + self.log_pz - self.log_qz_x


class GivenNoise(Messenger):
    """Draws Pyro's latent sites as loc + scale * eps, with noise that is given.

    Args:
        eps: Noise of each level, shape `(batch, size of the level)`, that of z first.
    """

    def __init__(self, eps: Sequence[Tensor]) -> None:
        super().__init__()
        self._eps = dict(zip(site_names(len(eps)), eps, strict=True))

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self._eps:
            normal = msg["fn"].base_dist
            msg["value"] = normal.loc + normal.scale * self._eps[msg["name"]]
            msg["done"] = True


def elbo_terms(vae: VAE, x: Tensor, eps: Sequence[Tensor], y: Tensor | None = None) -> ElboTerms:
    """Return the ELBO's terms of each observation.

    Args:
        vae: The model; in evaluation mode log p(x|z) is that of the parameters which a bundle has.
        x: Observations, shape `(batch, ...)`.
        eps: Noise of each level, shape `(batch, size of the level)`, that of z first.
        y: Labels, shape `(batch,)`, for a conditional model.
    """
    statements, _ = objective_of(vae, registered=False)
    # Networks of one's own may have parameters that are Pyro's.
    with pyro.get_param_store().scope(), pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Encountered", category=UserWarning)  # NaN is the caller's to judge
        guide = poutine.trace(GivenNoise(eps)(vae.sample_posterior)).get_trace(x, y)
        enumerated = poutine.enum(statements, first_available_dim=-2)
        model = poutine.trace(poutine.replay(enumerated, guide)).get_trace(x, y)
        guide.compute_log_prob()
        model.compute_log_prob()
    levels: list[Any] = [guide.nodes[name] for name in site_names(len(eps))]
    log_pz = _sum(model.nodes[level["name"]]["log_prob"] for level in levels)
    if vae.latent.enumerated:
        log_pz = torch.logsumexp(log_pz + model.nodes[COMPONENT_SITE]["log_prob"], dim=0)
    return ElboTerms(
        log_px_z=model.nodes["obs"]["log_prob"],
        log_pz=log_pz,
        log_qz_x=_sum(level["log_prob"] for level in levels),
        z=tuple(level["value"] for level in levels),
        z_loc=tuple(level["fn"].base_dist.loc for level in levels),
        z_scale=tuple(level["fn"].base_dist.scale for level in levels),
    )


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum(0)
