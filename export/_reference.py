"""What Pyro itself computes, for a bundle's reference."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.poutine.messenger import Messenger
from torch import Tensor

from export._errors import ExportError
from runtime import BATCH_SIZES, Reference, level_names
from train import COMPONENT_SITE, LATENT_SITE, VAE, Likelihood

_ROWS = max(BATCH_SIZES)
_SEED = 0
_GRID = 16  # steps in 1 of the noise of observations: few values, which compress well
_RANGE = 3.0  # of that noise: beyond it Φ(eps) is so near to 1 that float32 leaves the inverse of it few digits
_MARGIN = 1e-4  # how far that noise stays from where a discrete draw changes


class GivenNoise(Messenger):
    """Draws Pyro's latent sites as loc + scale * eps, with noise that is given.

    Args:
        eps: Noise of each level, shape `(batch, size of the level)`, that of z first.
    """

    def __init__(self, eps: Sequence[Tensor]) -> None:
        super().__init__()
        self._eps = dict(zip(level_names(LATENT_SITE, len(eps)), eps, strict=True))

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self._eps:
            normal = msg["fn"].base_dist
            msg["value"] = normal.loc + normal.scale * self._eps[msg["name"]]
            msg["done"] = True


def make_reference(vae: VAE, samples: Tensor, labels: Tensor | None = None) -> Reference:
    """Compute the reference: samples, then all zeros and all ones, 256 rows together.

    Args:
        vae: The model, on the CPU.
        samples: Observations, shape `(num_samples, *data_shape)`; at least one. Fewer than 254 are repeated.
        labels: Their classes, shape `(num_samples,)`, for a conditional model.

    Raises:
        ExportError: The model's own outputs are not finite.
    """
    generator = torch.Generator().manual_seed(_SEED)
    picked = torch.arange(_ROWS - 2) % len(samples)
    flat = samples.flatten(1)
    x = torch.cat([flat[picked], torch.zeros_like(flat[:1]), torch.ones_like(flat[:1])])
    y = None if labels is None else torch.cat([labels[picked], labels[:1], labels[:1]])
    eps = [torch.randn((_ROWS, size), generator=generator) for size in vae.config.z_dims]
    eps_obs = torch.round(torch.randn(x.shape, generator=generator).clamp(-_RANGE, _RANGE) * _GRID) / _GRID
    with torch.no_grad():
        tensors = {"x": x, **elbo_terms(vae, x, eps, y)}
        likelihood = vae.decoder.likelihood
        parameters = vae.decoder.parameters_at(tensors["z"], y)
        eps_obs = _steady(likelihood, parameters, eps_obs)
        tensors.update(zip(likelihood.parameter_names, parameters, strict=True))
        tensors.update(eps_obs=eps_obs, obs=likelihood.draw(parameters, eps_obs), **_prior(vae, eps))
        tensors.update(zip(level_names("eps", len(eps)), eps, strict=True))
        for name, tensor in zip(
            vae.latent.posterior_names,
            vae.latent.posterior(tensors["z_loc"], tensors["z_scale"], *eps[:-1]),
            strict=True,
        ):
            tensors.setdefault(name, tensor)  # what Pyro's traces hold is taken from there
    if y is not None:
        tensors["y"] = y
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ExportError(f"Pyro's own {name} holds NaN or infinity: the weights are damaged; train again")
    case = np.array([*["sample"] * (_ROWS - 2), "zeros", "ones"])
    return Reference(case, {name: tensor.contiguous().numpy() for name, tensor in tensors.items()})


def elbo_terms(vae: VAE, x: Tensor, eps: Sequence[Tensor], y: Tensor | None = None) -> dict[str, Tensor]:
    """Return the ELBO's terms and what they are of, by name, from Pyro's own traces of guide and model.

    Args:
        vae: The model.
        x: Observations, shape `(batch, ...)`.
        eps: Noise of each level, shape `(batch, size of the level)`, that of z first.
        y: Labels, shape `(batch,)`, for a conditional model.

    Returns:
        `log_px_z`, `log_pz` and `log_qz_x`, in nats, shape `(batch,)` each; a hierarchy's are those of all its levels
        together, a mixture's component is summed out. And `z`, `z_loc` and `z_scale`, those of upper levels numbered.
    """
    levels = level_names(LATENT_SITE, len(eps))
    with pyro.get_param_store().scope(), pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Encountered", category=UserWarning)  # NaN is the caller's to judge
        guide = poutine.trace(GivenNoise(eps)(vae.guide)).get_trace(x, y)
        enumerated = poutine.enum(config_enumerate(vae.model), first_available_dim=-2)
        model = poutine.trace(poutine.replay(enumerated, guide)).get_trace(x, y)
        guide.compute_log_prob()
        model.compute_log_prob()
    log_pz = _sum(model.nodes[level]["log_prob"] for level in levels)
    if COMPONENT_SITE in model.nodes:
        log_pz = torch.logsumexp(log_pz + model.nodes[COMPONENT_SITE]["log_prob"], dim=0)
    found: dict[str, Any] = {}
    for quantity in ("loc", "scale"):
        for name, level in zip(level_names(f"z_{quantity}", len(eps)), levels, strict=True):
            site: Any = guide.nodes[level]["fn"]
            found[name] = getattr(site.base_dist, quantity)
    found["z"] = guide.nodes[LATENT_SITE]["value"]
    found["log_px_z"] = model.nodes["obs"]["log_prob"]
    found["log_pz"] = log_pz
    found["log_qz_x"] = _sum(guide.nodes[level]["log_prob"] for level in levels)
    return found


def _prior(vae: VAE, eps: Sequence[Tensor]) -> Mapping[str, Tensor]:
    """Z of the prior, from Pyro's own statements; and the component where there is one."""
    component = torch.arange(_ROWS) % vae.config.components
    given = {COMPONENT_SITE: component} if vae.latent.enumerated else {}
    with pyro.plate("data", _ROWS):
        z_prior = GivenNoise(eps)(poutine.condition(vae.latent.sample_prior, data=given))(eps[0])
    return {"z_prior": z_prior, COMPONENT_SITE: component} if given else {"z_prior": z_prior}


def _steady(likelihood: Likelihood, parameters: tuple[Tensor, ...], eps: Tensor) -> Tensor:
    """Move noise off the places where a discrete draw changes: there, rounding decides and not the graph."""
    if likelihood.discrete:
        for _ in range(_GRID):
            low, high = (likelihood.draw(parameters, eps + side) for side in (-_MARGIN, _MARGIN))
            eps = torch.where(low == high, eps, eps + 1 / _GRID)
    return eps


def _sum(terms: Any) -> Tensor:
    total: Tensor = torch.stack(torch.broadcast_tensors(*terms)).sum(0)
    return total
