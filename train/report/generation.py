"""What a model makes of images, and on its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from ..data import Images
from ..device import forked_rng
from ..elbo import ACTIVE, device_of, evaluating
from ..vae import VAE

_SEED = 0
_MAX_ROWS = 20
_PLAIN_ROWS = 6
_SPAN = 3.0  # standard deviations to either side
_BATCH_SIZE = 1024


def spread_out(count: int, wanted: int) -> Tensor:
    """Return up to `wanted` indices of `count` rows, evenly spaced: rows are often in the order of their classes."""
    return torch.arange(min(count, wanted)) * count // max(1, min(count, wanted))


def some_of(vae: VAE, images: Images, labels: Tensor | None, wanted: int) -> tuple[Tensor, Tensor | None]:
    """Return up to `wanted` images on the model's device, and their labels where the model sees labels."""
    indices, device = spread_out(len(images), wanted), device_of(vae)
    x = images[indices.to(images.device)].to(device)
    sees_labels = labels is not None and vae.config.num_classes > 0
    return x, labels[indices.to(labels.device)].to(device) if labels is not None and sees_labels else None


def encoded(vae: VAE, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return `z_loc` and `z_scale` of q(z|x), shape `(batch, z_dim)` each, on the CPU."""
    with evaluating(vae):
        parts = [
            vae.encoder(rows, None if y is None else y[start : start + _BATCH_SIZE])
            for start, rows in zip(range(0, len(x), _BATCH_SIZE), x.split(_BATCH_SIZE), strict=True)
        ]
    z_loc, z_scale = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    return z_loc, z_scale


def reconstructed(vae: VAE, x: Tensor, y: Tensor | None) -> Tensor:
    """Return `loc_img` of one draw of z for each row, of a fixed seed, shape `(batch, data_dim)`, on the CPU."""
    with evaluating(vae), forked_rng(device_of(vae)):
        torch.manual_seed(_SEED)
        return vae.reconstruct_img(x, y).cpu()


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """Samples of the prior, decoded.

    Args:
        loc_img: Means of p(x|z), shape `(rows, columns, data_dim)`, on the CPU.
        drawn: Draws of p(x|z), likewise.
        names: What each row is; empty where rows are not told apart.
    """

    loc_img: Tensor
    drawn: Tensor
    names: tuple[str, ...]


def sampled(vae: VAE, columns: int, class_names: Sequence[str] = ()) -> Samples:
    """Sample the prior with a fixed seed: a class a row, or a component of a mixture a row, or just rows.

    Args:
        vae: The model.
        columns: Samples in a row.
        class_names: Names of a conditional model's classes; without them their numbers.
    """
    config, device = vae.config, device_of(vae)
    generator = torch.Generator().manual_seed(_SEED)
    num_rows = min(_MAX_ROWS, config.num_classes or (config.components if vae.latent.enumerated else _PLAIN_ROWS))
    count = num_rows * columns
    of_row = torch.arange(num_rows).repeat_interleave(columns)
    noise = [torch.randn((count, size), generator=generator) for size in config.z_dims]
    names: tuple[str, ...] = ()
    with evaluating(vae):
        probs = vae.latent.component_probs.cpu()
        if config.num_classes:
            names = tuple(class_names[:num_rows] or (f"class {row}" for row in range(num_rows)))
            if vae.latent.enumerated:
                noise.insert(0, torch.multinomial(probs, count, replacement=True, generator=generator))
        elif vae.latent.enumerated:
            likeliest = probs.argsort(descending=True)[:num_rows]
            names = tuple(f"component {c}, p = {probs[c]:.2f}" for c in likeliest.tolist())
            noise.insert(0, likeliest[of_row])
        z = vae.latent.prior(*(each.to(device) for each in noise))
        parameters = vae.decoder.parameters_at(z, of_row.to(device) if config.num_classes else None)
        eps = torch.randn((count, config.data_dim), generator=generator).to(device)
        drawn = vae.decoder.likelihood.draw(parameters, eps)
    loc_img, drawn = (each.cpu().unflatten(0, (num_rows, columns)) for each in (parameters[0], drawn))
    return Samples(loc_img, drawn, names)


@dataclasses.dataclass(frozen=True, eq=False)
class Traversals:
    """One observation's z, one dimension at a time moved through its range and decoded.

    Args:
        loc_img: Means of p(x|z), shape `(dimensions, steps, data_dim)`, on the CPU.
        dimensions: Which dimensions of z, the one that varies most over the data first.
        steps: Where z is, in standard deviations of `z_loc` over the data from its mean, shape `(steps,)`.
    """

    loc_img: Tensor
    dimensions: tuple[int, ...]
    steps: Tensor


def traversed(vae: VAE, z_loc: Tensor, y: Tensor | None, dimensions: int, steps: int) -> Traversals:
    """Traverse the active dimensions that vary most over the data, from the first observation's z; at least one.

    Args:
        vae: The model.
        z_loc: Means of q(z|x) of some observations, shape `(count, z_dim)`.
        y: Their labels, for a conditional model.
        dimensions: How many at most.
        steps: Values of each.
    """
    spread, centre = z_loc.std(0, correction=0), z_loc.mean(0)
    active = int((spread.square() > ACTIVE).sum())
    moved = spread.argsort(descending=True)[: max(1, min(active, dimensions))]
    at = torch.linspace(-_SPAN, _SPAN, steps)
    z = z_loc[0].repeat(len(moved), steps, 1)
    for row, dimension in enumerate(moved):
        z[row, :, dimension] = centre[dimension] + at * spread[dimension]
    device = device_of(vae)
    z = z.flatten(0, 1).to(device)
    with evaluating(vae):
        loc_img = vae.decoder(z, None if y is None else y[:1].expand(len(z)).to(device)).cpu()
    return Traversals(loc_img.unflatten(0, (len(moved), steps)), tuple(moved.tolist()), at)
