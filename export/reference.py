"""A bundle's reference: what Pyro computes for real observations and edge cases."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgevae import BATCH_SIZES, Reference
from edgevae.train import VAE, LabelError, check_label_values
from edgevae.train.elbo import NUM_OUTLIERS, lowest
from edgevae.verify import ELBO_ROUNDING, KL_ROUNDING, SAMPLE, rounding_name

from .errors import ExportError
from .exportable import GRID, Exportable, ExportableVAE, exportable
from .program_sites import SiteProgram
from .torch_formats import TorchGraph

_ROWS = max(BATCH_SIZES)
_OUTLIERS = NUM_OUTLIERS
_SAMPLES = _ROWS - _OUTLIERS - 2
_CASES = [SAMPLE] * _SAMPLES + ["outlier"] * _OUTLIERS + ["lowest", "highest"]
_SEED = 0
_RANGE = 3.0  # limit of that noise: beyond, float32 cannot represent Φ(eps) accurately enough for its inverse
_MOVES = 8  # of the weights, to find the rounding of each value
_MOVE = 2.0**-20  # eight times float32's precision: less may vanish where few terms are summed


def make_reference(
    model: VAE | ExportableVAE,
    samples: Tensor,
    labels: Tensor | None = None,
    outliers: Tensor | None = None,
    outlier_labels: Tensor | None = None,
) -> Reference:
    """Compute the reference: 238 samples, 16 outliers, and the lowest and the highest value of each column.

    The lowest and highest values are those of the samples and outliers given: a row of zeros or of ones may be so far
    from all that a model was fitted to that its outputs overflow. A sample that overflows float32 becomes an outlier.

    Args:
        model: The model, on the CPU.
        samples: Observations, shape `(num_samples, *data_shape)`, at least one; repeated if fewer than 238.
        labels: Their classes, shape `(num_samples,)`, for a conditional model.
        outliers: The most extreme observations, shape `(num_outliers, *data_shape)`, repeated if fewer than 16; by
            default the samples with the lowest ELBO.
        outlier_labels: Their classes, for a conditional model.

    Raises:
        ExportError: The model's outputs are finite for no sample, or the labels do not fit.
    """
    model = exportable(model)
    if outliers is None:
        outliers, outlier_labels = _lowest(model, samples, labels)
    try:
        for rows, classes in ((samples, labels), (outliers, outlier_labels)):
            check_label_values(classes, len(rows), model.spec.num_classes)
    except LabelError as error:
        raise ExportError(f"the labels of the samples do not fit: {error}") from error
    broken = [name for name, tensor in model.weights().items() if not torch.isfinite(tensor).all()]
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
    tensors = _outputs(model, x, y)
    arrays = {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}
    reference = _relabelled(Reference(np.array(_CASES), arrays))
    return _relabelled(_with_roundings(model, reference))


def make_site_reference(program: SiteProgram, arguments: Mapping[str, Tensor]) -> Reference:
    """Compute the reference of a program by its sites: 240 rows of the arguments, and the 16 with the lowest ELBO.

    Args:
        program: The program.
        arguments: At least one row of each; repeated if there are fewer than 240.

    Raises:
        ExportError: The program's outputs are finite for no sample.
    """
    elbos = program.elbo_of_rows(arguments)
    outliers = lowest(elbos, _OUTLIERS)
    rest = torch.ones(len(elbos), dtype=torch.bool).index_fill(0, outliers, False).nonzero().flatten()
    samples = rest if len(rest) else torch.arange(len(elbos))
    rows = torch.cat([_taken(samples, _ROWS - _OUTLIERS), _taken(outliers, _OUTLIERS)])
    tensors = program.outputs({name: values[rows] for name, values in arguments.items()})
    arrays = {name: value.contiguous().numpy() for name, value in tensors.items()}
    cases = np.array([SAMPLE] * (_ROWS - _OUTLIERS) + ["outlier"] * _OUTLIERS)
    return _relabelled(_with_roundings(program, _relabelled(Reference(cases, arrays))))


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


def _lowest(model: ExportableVAE, samples: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the samples with the lowest ELBO, and their labels."""
    rows = lowest(model.elbo_of_each(samples, labels), _OUTLIERS)
    return samples[rows], None if labels is None else labels[rows]


def _taken(rows: Tensor, count: int) -> Tensor:
    """Return the first `count` rows, repeated if there are fewer."""
    return rows[torch.arange(count) % len(rows)]


def _outputs(model: ExportableVAE, x: Tensor, y: Tensor | None) -> dict[str, Tensor]:
    """Return the inputs of all graphs, and Pyro's outputs for them."""
    generator = torch.Generator().manual_seed(_SEED)
    eps = [torch.randn((_ROWS, size), generator=generator) for size in model.spec.z_dims]
    eps_obs = torch.round(torch.randn(x.shape, generator=generator).clamp(-_RANGE, _RANGE) * GRID) / GRID
    return model.outputs(x, y, eps, eps_obs)


def _with_roundings(model: Exportable, reference: Reference) -> Reference:
    """Add the roundings: how far the outputs move when each weight changes by a few roundings.

    Sums of products are backward stable: whatever the order of the operations, the result is exact for weights that
    differ from the given ones by a few roundings (Higham, "Accuracy and Stability of Numerical Algorithms", chapters 1
    and 3). So what such weights change is what another order may change, for this row and this model. Float64 beside
    float32 would say it from one order only, and clamps probabilities elsewhere.
    """
    programs = model.programs
    modules = nn.ModuleDict({name: program.module for name, program in programs.items()})
    generator = torch.Generator().manual_seed(_SEED)
    found: dict[str, NDArray[np.float64]] = {}

    def keep(name: str, distance: NDArray[np.float64]) -> None:
        found[name] = np.maximum(found.get(name, 0.0), np.nan_to_num(distance, nan=np.inf))

    for _ in range(_MOVES):
        moved = _moved(modules, generator)
        graphs = {name: TorchGraph(program.signature, moved[name]) for name, program in programs.items()}
        for graph, run in graphs.items():
            for output, array in run(reference.arrays).items():
                keep(rounding_name(graph, output), _distance(reference, graph, output, array))
        posterior = graphs["encoder"](reference.arrays)
        arrays = {**reference.arrays, **posterior}
        if model.spec.program is None:
            arrays["z"] = arrays["z_loc"] + arrays["z_scale"] * arrays["eps"]
            keep(KL_ROUNDING, reference.kl(posterior))
        for graph in ("sample", "decoder", "elbo"):
            if graph in graphs:
                arrays.update(graphs[graph](arrays))
        keep(ELBO_ROUNDING, _apart(reference.elbo, Reference(reference.case, arrays).elbo))
    roundings = {name: array.astype(np.float32) for name, array in found.items()}
    return Reference(reference.case, {**reference.arrays, **roundings})


def _moved(modules: nn.ModuleDict, generator: torch.Generator) -> nn.ModuleDict:
    """Return copies of modules in which each weight has changed by up to `_MOVE` of itself, shared ones alike."""
    moved = copy.deepcopy(modules)
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
