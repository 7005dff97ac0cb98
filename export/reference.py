"""A bundle's reference: what Pyro computes for real observations and edge cases."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
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
    elbo_of_each,
    elbo_terms,
    evaluating,
)
from edgevae.train.elbo import NUM_OUTLIERS, lowest
from edgevae.train.programs import make_programs, model_spec
from edgevae.verify import ELBO_ROUNDING, KL_ROUNDING, SAMPLE, rounding_name

from .errors import ExportError
from .torch_formats import TorchGraph

_ROWS = max(BATCH_SIZES)
_OUTLIERS = NUM_OUTLIERS
_SAMPLES = _ROWS - _OUTLIERS - 2
_CASES = [SAMPLE] * _SAMPLES + ["outlier"] * _OUTLIERS + ["lowest", "highest"]
_SEED = 0
_GRID = 16  # the noise of observations is rounded to sixteenths, which compress well
_RANGE = 3.0  # limit of that noise: beyond, float32 cannot represent Φ(eps) accurately enough for its inverse
_MARGIN = 1e-4  # distance of that noise from the steps of a discrete draw
_MOVES = 8  # of the weights, to find the rounding of each value
_MOVE = 2.0**-20  # eight times float32's precision: less may vanish where few terms are summed
_TERMS = ("log_px_z", "log_pz", "log_qz_x")


def make_reference(
    vae: VAE,
    samples: Tensor,
    labels: Tensor | None = None,
    outliers: Tensor | None = None,
    outlier_labels: Tensor | None = None,
) -> Reference:
    """Compute the reference: 238 samples, 16 outliers, and the lowest and the highest value of each column.

    The lowest and highest values are those of the samples and outliers given: a row of zeros or of ones may be so far
    from all that a model was fitted to that its outputs overflow. A sample that overflows float32 becomes an outlier.

    Args:
        vae: The model, on the CPU.
        samples: Observations, shape `(num_samples, *data_shape)`, at least one; repeated if fewer than 238.
        labels: Their classes, shape `(num_samples,)`, for a conditional model.
        outliers: The most extreme observations, shape `(num_outliers, *data_shape)`, repeated if fewer than 16; by
            default the samples with the lowest ELBO.
        outlier_labels: Their classes, for a conditional model.

    Raises:
        ExportError: The model's outputs are finite for no sample, or the labels do not fit.
    """
    if outliers is None:
        outliers, outlier_labels = _lowest(vae, samples, labels)
    try:
        for rows, classes in ((samples, labels), (outliers, outlier_labels)):
            check_label_values(classes, len(rows), vae.config.num_classes)
    except LabelError as error:
        raise ExportError(f"the labels of the samples do not fit: {error}") from error
    broken = [name for name, tensor in vae.state_dict().items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ExportError(f"the weights {', '.join(broken)} hold NaN or infinity; train again")
    given = torch.cat([samples.flatten(1), outliers.flatten(1)])
    samples, labels = _others(samples, labels, outliers)
    x = torch.cat([_taken(samples.flatten(1), _SAMPLES), _taken(outliers.flatten(1), _OUTLIERS)])
    x = torch.cat([x, given.amin(0, keepdim=True), given.amax(0, keepdim=True)])
    y = None
    if labels is not None and outlier_labels is not None:
        y = torch.cat(
            [_taken(labels, _SAMPLES), _taken(outlier_labels, _OUTLIERS), _taken(labels, 1), _taken(labels, 1)]
        )
    tensors = _outputs(vae, x, y)
    arrays = {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}
    reference = _relabelled(Reference(np.array(_CASES), arrays))
    return _relabelled(_with_roundings(vae, reference, x, y))


def _relabelled(reference: Reference) -> Reference:
    """Return the reference with samples that overflow float32 as outliers.

    Raises:
        ExportError: No sample is left.
    """
    finite = [np.isfinite(array).reshape(_ROWS, -1).all(1) for array in reference.arrays.values()]
    case = np.where(reference.is_sample & ~np.all(finite, axis=0), "outlier", reference.case)
    if SAMPLE not in case:
        raise ExportError(
            "Pyro's own numbers overflow float32 for each of the samples: the model has diverged; train again with a "
            "lower learning rate (--learning-rate)"
        )
    return Reference(case, reference.arrays)


def _others(samples: Tensor, labels: Tensor | None, outliers: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the samples that are no outliers, and their labels; all if each is one."""
    same = torch.stack([(samples == outlier).flatten(1).all(1) for outlier in outliers]).any(0)
    if same.all():
        return samples, labels
    return samples[~same], None if labels is None else labels[~same]


def _lowest(vae: VAE, samples: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the samples with the lowest ELBO, and their labels."""
    rows = lowest(elbo_of_each(vae, samples, labels=labels), _OUTLIERS)
    return samples[rows], None if labels is None else labels[rows]


def _taken(rows: Tensor, count: int) -> Tensor:
    """Return the first `count` rows, repeated if there are fewer."""
    return rows[torch.arange(count) % len(rows)]


def _outputs(vae: VAE, x: Tensor, y: Tensor | None) -> dict[str, Tensor]:
    """Return the inputs of all graphs, and Pyro's outputs for them."""
    generator = torch.Generator().manual_seed(_SEED)
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
    return tensors


def _with_roundings(vae: VAE, reference: Reference, x: Tensor, y: Tensor | None) -> Reference:
    """Add the roundings: how far the outputs move when each weight changes by a few roundings.

    Sums of products are backward stable: whatever the order of the operations, the result is exact for weights that
    differ from the given ones by a few roundings (Higham, "Accuracy and Stability of Numerical Algorithms", chapters 1
    and 3). So what such weights change is what another order may change, for this row and this model. Float64 beside
    float32 would say it from one order only, and clamps probabilities elsewhere.
    """
    eps = [torch.from_numpy(reference[name]) for name in level_names("eps", len(vae.config.z_dims))]
    generator = torch.Generator().manual_seed(_SEED)
    found: dict[str, NDArray[np.float64]] = {}

    def keep(name: str, distance: NDArray[np.float64]) -> None:
        found[name] = np.maximum(found.get(name, 0.0), np.nan_to_num(distance, nan=np.inf))

    for _ in range(_MOVES):
        moved = _moved(vae, generator)
        with evaluating(moved):
            for graph, program in make_programs(moved).items():
                run = TorchGraph(program.signature, program.module)
                for output, array in run(reference.arrays).items():
                    keep(rounding_name(graph, output), _distance(reference, graph, output, array))
            terms = elbo_terms(moved, x, eps, y)
        elbo = Reference(reference.case, {name: getattr(terms, name).numpy() for name in _TERMS}).elbo
        keep(ELBO_ROUNDING, _apart(reference.elbo, elbo))
        posterior = dict(zip(level_names("z_loc", len(eps)), terms.z_loc, strict=True))
        posterior.update(zip(level_names("z_scale", len(eps)), terms.z_scale, strict=True))
        keep(KL_ROUNDING, reference.kl({name: tensor.numpy() for name, tensor in posterior.items()}))
    roundings = {name: array.astype(np.float32) for name, array in found.items()}
    return Reference(reference.case, {**reference.arrays, **roundings})


def _moved(vae: VAE, generator: torch.Generator) -> VAE:
    """Return a copy of a model in which each weight has changed by up to `_MOVE` of itself."""
    moved = copy.deepcopy(vae)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.mul_(1 + _MOVE * (2 * torch.rand(parameter.shape, generator=generator) - 1))
    return moved


def _distance(reference: Reference, graph: str, output: str, moved: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return how far an output has moved, as `Reference` says, shape `(rows,)`."""
    expected = reference[output].astype(np.float64)
    with np.errstate(all="ignore"):  # infinite values
        parts = _apart(expected, moved) / (reference.unit(graph, output) + np.abs(expected))
    parts = np.where(np.isfinite(expected), parts, _apart(expected, moved))
    return parts.reshape(len(parts), -1).max(1)


def _apart(one: NDArray[np.float64], other: NDArray[Any]) -> NDArray[np.float64]:
    """Return |one - other|; 0 where both are not finite, infinite where one is not."""
    finite = np.isfinite(one), np.isfinite(other)
    with np.errstate(invalid="ignore"):
        return np.where(finite[0] & finite[1], np.abs(one - other), np.where(finite[0] == finite[1], 0.0, np.inf))


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
