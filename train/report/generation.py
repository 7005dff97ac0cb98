"""Reconstructions, samples and traversals for a report.

Noise has fixed seeds; the model and the random generators are left as they were.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from ..data import Images
from ..device import forked_rng
from ..elbo import ACTIVE_VARIANCE, device_of, draw_prior, evaluating
from ..trainable import Trainable
from ..vae import VAE

_SEED = 0
_MAX_ROWS = 20  # of samples
_UNNAMED_ROWS = 6  # of samples, without classes or components
_SPAN = 3.0  # of a traversal, in standard deviations to either side
_VISIBLE = 0.05  # a dimension is shown if it changes loc_img by this share of the largest change (variances)
_BATCH_SIZE = 1024


def evenly_spaced(count: int, wanted: int) -> Tensor:
    """Return up to `wanted` indices of `count` rows, evenly spaced: data sets are often sorted by class."""
    return torch.arange(min(count, wanted)) * count // max(1, min(count, wanted))


def some_of(vae: Trainable, images: Images, labels: Tensor | None, wanted: int) -> tuple[Tensor, Tensor | None]:
    """Return up to `wanted` images, evenly spaced, and their labels if the model is conditional; on its device."""
    indices, device = evenly_spaced(len(images), wanted), device_of(vae)
    x = images[indices.to(images.device)].to(device)
    conditional = labels is not None and vae.config.num_classes > 0
    return x, labels[indices.to(labels.device)].to(device) if labels is not None and conditional else None


def encode(vae: Trainable, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return `z_loc` and `z_scale` of q(z|x), shape `(batch, num_units)` each, on the CPU."""
    with evaluating(vae):
        parts = [
            vae.encode(rows, None if y is None else y[start : start + _BATCH_SIZE])
            for start, rows in zip(range(0, len(x), _BATCH_SIZE), x.split(_BATCH_SIZE), strict=True)
        ]
    z_loc, z_scale = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    return z_loc, z_scale


def reconstruct(vae: Trainable, x: Tensor, y: Tensor | None) -> Tensor:
    """Return `loc_img` for one draw of z a row, shape `(batch, data_dim)`, on the CPU."""
    with evaluating(vae), forked_rng(device_of(vae)):
        torch.manual_seed(_SEED)
        return vae.reconstruct_img(x, y).cpu()


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """Samples of the prior, decoded.

    Args:
        loc_img: Means of p(x|z), shape `(rows, columns, data_dim)`, on the CPU.
        drawn: Draws from p(x|z), of the same shape, on the CPU.
        names: Class or component of each row; empty without either.
    """

    loc_img: Tensor
    drawn: Tensor
    names: tuple[str, ...]


def sample_prior(vae: VAE, columns: int, class_names: Sequence[str] = ()) -> Samples:
    """Sample the prior: a row for each class, for each component of a mixture, or otherwise a few rows.

    Args:
        vae: The model.
        columns: Samples in a row.
        class_names: Names of a conditional model's classes; without them their numbers.
    """
    config, device = vae.config, device_of(vae)
    generator = torch.Generator().manual_seed(_SEED)
    num_rows = min(_MAX_ROWS, config.num_classes or (config.components if vae.latent.enumerated else _UNNAMED_ROWS))
    count = num_rows * columns
    of_row = torch.arange(num_rows).repeat_interleave(columns)
    noise = [torch.randn((count, size), generator=generator) for size in config.z_dims]
    component: Tensor | None = None
    names: tuple[str, ...] = ()
    with evaluating(vae):
        probs = vae.latent.component_probs.cpu()
        if config.num_classes:
            names = tuple(class_names[:num_rows] or (f"class {row}" for row in range(num_rows)))
            if vae.latent.enumerated:
                component = torch.multinomial(probs, count, replacement=True, generator=generator)
        elif vae.latent.enumerated:
            likeliest = probs.argsort(descending=True)[:num_rows]
            names = tuple(f"component {c}, p = {probs[c]:.2f}" for c in likeliest.tolist())
            component = likeliest[of_row]
        component = None if component is None else component.to(device)
        z = draw_prior(vae.latent, [each.to(device) for each in noise], component)
        p_x = vae.decoder.likelihood.distribution(
            vae.decoder.outputs_at(z, of_row.to(device) if config.num_classes else None)
        )
        with forked_rng(device):
            torch.manual_seed(_SEED)
            drawn = p_x.sample()
    loc_img, drawn = (each.cpu().unflatten(0, (num_rows, columns)) for each in (p_x.mean, drawn))
    return Samples(loc_img, drawn, names)


@dataclasses.dataclass(frozen=True, eq=False)
class Traversals:
    """One observation's z, decoded while one dimension at a time moves through its range.

    Args:
        loc_img: Means of p(x|z), shape `(dimensions, steps, data_dim)`, on the CPU.
        dimensions: The dimensions that move, that with the largest change of `loc_img` first.
        steps: Their positions, in standard deviations from the mean over the data, shape `(steps,)`.
    """

    loc_img: Tensor
    dimensions: tuple[int, ...]
    steps: Tensor


def traverse(vae: VAE, z_loc: Tensor, y: Tensor | None, dimensions: int, steps: int) -> Traversals:
    """Traverse the active dimensions that change p(x|z) most, from the first observation's z; at least one.

    Args:
        vae: The model.
        z_loc: Means of q(z|x) of some observations, shape `(count, z_dim)`.
        y: Their labels, for a conditional model.
        dimensions: The largest number of dimensions.
        steps: Number of values of each dimension.
    """
    spread, centre, device = z_loc.std(0, correction=0), z_loc.mean(0), device_of(vae)
    active = int((spread.square() > ACTIVE_VARIANCE).sum())
    candidates = spread.argsort(descending=True)[: max(1, active)].tolist()
    at = torch.linspace(-_SPAN, _SPAN, steps)
    label = None if y is None else y[:1].expand(steps).to(device)
    decoded: dict[int, Tensor] = {}
    with evaluating(vae):
        for dimension in candidates:
            z = z_loc[0].repeat(steps, 1)
            z[:, dimension] = centre[dimension] + at * spread[dimension]
            decoded[dimension] = vae.decoder(z.to(device), label).cpu()
    change = {dimension: float(loc_img.var(0).mean()) for dimension, loc_img in decoded.items()}
    visible = [dimension for dimension in candidates if change[dimension] >= _VISIBLE * max(change.values())]
    shown = sorted(visible, key=lambda dimension: -change[dimension])[:dimensions]
    return Traversals(torch.stack([decoded[dimension] for dimension in shown]), tuple(shown), at)
