"""A bundle's reference: what Pyro computes for real observations and edge cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor

from edgevae import BATCH_SIZES, Reference, level_names, signatures
from edgevae.train import (
    COMPONENT_SITE,
    VAE,
    GivenNoise,
    LabelError,
    Likelihood,
    check_label_values,
    elbo_terms,
    evaluating,
)
from edgevae.train.programs import model_spec

from .errors import ExportError

_ROWS = max(BATCH_SIZES)
_SEED = 0
_GRID = 16  # the noise of observations is rounded to sixteenths, which compress well
_RANGE = 3.0  # limit of that noise: beyond, float32 cannot represent Φ(eps) accurately enough for its inverse
_REACH = 4.0  # distance of edge cases from the mean, in standard deviations of the data
_MARGIN = 1e-4  # distance of that noise from the steps of a discrete draw


def make_reference(vae: VAE, samples: Tensor, labels: Tensor | None = None) -> Reference:
    """Compute the reference: 254 samples, a row of zeros and a row of ones.

    If the likelihood takes any range, zeros and ones are clipped to four standard deviations around the data's mean:
    the columns of a table may be so far from both that the networks' outputs overflow.

    Args:
        vae: The model, on the CPU.
        samples: Observations, shape `(num_samples, *data_shape)`, at least one; repeated if fewer than 254.
        labels: Their classes, shape `(num_samples,)`, for a conditional model.

    Raises:
        ExportError: The model's own outputs are not finite, or the labels do not fit.
    """
    try:
        check_label_values(labels, len(samples), vae.config.num_classes)
    except LabelError as error:
        raise ExportError(f"the labels of the samples do not fit: {error}") from error
    generator = torch.Generator().manual_seed(_SEED)
    picked = torch.arange(_ROWS - 2) % len(samples)
    flat = samples.flatten(1)
    x = torch.cat([flat[picked], _clipped(vae, torch.stack([torch.zeros_like(flat[0]), torch.ones_like(flat[0])]))])
    y = None if labels is None else torch.cat([labels[picked], labels[:1], labels[:1]])
    eps = [torch.randn((_ROWS, size), generator=generator) for size in vae.config.z_dims]
    eps_obs = torch.round(torch.randn(x.shape, generator=generator).clamp(-_RANGE, _RANGE) * _GRID) / _GRID
    with evaluating(vae):
        terms = elbo_terms(vae, x, eps, y)
        likelihood = vae.decoder.likelihood
        parameters = vae.decoder.parameters_at(terms.z[0], y)
        tensors = {"x": x}
        tensors.update(zip(level_names("z_loc", len(eps)), terms.z_loc, strict=True))
        tensors.update(zip(level_names("z_scale", len(eps)), terms.z_scale, strict=True))
        tensors.update(z=terms.z[0], log_px_z=terms.log_px_z, log_pz=terms.log_pz, log_qz_x=terms.log_qz_x)
        eps_obs = _away_from_steps(likelihood, parameters, eps_obs)
        tensors.update(zip(likelihood.parameter_names, parameters, strict=True))
        tensors.update(eps_obs=eps_obs, obs=likelihood.draw(parameters, eps_obs), **_prior(vae, eps))
        tensors.update(zip(level_names("eps", len(eps)), eps, strict=True))
        extra = vae.latent.posterior(terms.z_loc[0], terms.z_scale[0], *eps[:-1])
        names = [spec.name for spec in signatures(model_spec(vae), ())["encoder"].outputs[2:]]
        for name, tensor in zip(names, extra, strict=True):
            tensors.setdefault(name, tensor)  # values from Pyro's traces take precedence
    if y is not None:
        tensors["y"] = y
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ExportError(f"Pyro's own {name} holds NaN or infinity: the weights are damaged; train again")
    case = np.array([*["sample"] * (_ROWS - 2), "zeros", "ones"])
    return Reference(case, {name: tensor.contiguous().numpy() for name, tensor in tensors.items()})


def _clipped(vae: VAE, edges: Tensor) -> Tensor:
    """Clip edge cases to the range of the data, if the model standardises its inputs."""
    if vae.decoder.likelihood.unit_interval:
        return edges
    data_loc, data_scale = (torch.tensor(each) for each in (vae.config.data_loc, vae.config.data_scale))
    reach = _REACH * data_scale
    return torch.minimum(torch.maximum(edges, data_loc - reach), data_loc + reach)


def _prior(vae: VAE, eps: Sequence[Tensor]) -> Mapping[str, Tensor]:
    """Return z of the prior, from a trace of Pyro's sample statements; for a mixture also the component and p(c)."""
    component = torch.arange(_ROWS) % vae.config.components
    given = {COMPONENT_SITE: component} if vae.latent.enumerated else {}
    statements = GivenNoise(eps)(poutine.condition(vae.latent.sample_prior, data=given))
    with pyro.plate("data", _ROWS):
        trace = poutine.trace(statements).get_trace(eps[0])
    z_prior: Any = trace.nodes["_RETURN"]["value"]
    if not given:
        return {"z_prior": z_prior}
    categorical: Any = trace.nodes[COMPONENT_SITE]["fn"]
    return {"z_prior": z_prior, "component": component, "prior_probs": categorical.probs}


def _away_from_steps(likelihood: Likelihood, parameters: tuple[Tensor, ...], eps: Tensor) -> Tensor:
    """Move noise away from the steps of a discrete draw, where the result would depend on rounding."""
    if likelihood.discrete:
        for _ in range(_GRID):
            low, high = (likelihood.draw(parameters, eps + side) for side in (-_MARGIN, _MARGIN))
            eps = torch.where(low == high, eps, eps + 1 / _GRID)
    return eps
