"""The pictures of a model card, as Pyro's own networks draw them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgevae import Reference
from edgevae.images import can_draw, save_grid
from edgevae.train import VAE

SAMPLES_FILE = "samples.png"
TRAVERSAL_FILE = "traversal.png"

_COLUMNS = 12
_ROWS = 8  # of a traversal, and at most of samples
_SPAN = 3.0  # standard deviations of the latent over the samples, to either side
_SEED = 0


def draw_pictures(folder: Path, vae: VAE, reference: Reference) -> None:
    """Draw `samples.png` and `traversal.png` into the bundle, where observations are images.

    Args:
        folder: The bundle.
        vae: The model, on the CPU.
        reference: Its samples are the images that are reconstructed and traversed.
    """
    if not can_draw(vae.config.data_shape):
        return
    rows = np.flatnonzero(reference.case == "sample")
    first = rows[:_COLUMNS]
    with torch.no_grad():
        generated = _generated(vae).numpy()
        traversal = _traversal(vae, torch.from_numpy(reference["z_loc"][rows]), _label(reference)).numpy()
    shape = vae.config.data_shape
    images = np.concatenate([reference["x"][first], reference["loc_img"][first], generated])
    save_grid(folder / SAMPLES_FILE, _shown(vae, images), shape, _COLUMNS)
    save_grid(folder / TRAVERSAL_FILE, _shown(vae, traversal), shape, _COLUMNS)


def what_is_generated(vae: VAE) -> str:
    """Say what the rows of `samples.png` below the reconstructions are."""
    if vae.config.num_classes:
        return "samples of the prior, a class a row"
    if vae.latent.enumerated:
        return "samples of the prior, a component of the mixture a row, the likeliest first"
    return "samples of the prior"


def _generated(vae: VAE) -> Tensor:
    """Images of the prior, rows of `_COLUMNS`: a class a row, or a component a row, or two rows."""
    config = vae.config
    generator = torch.Generator().manual_seed(_SEED)
    num_rows = config.num_classes or (config.components if vae.latent.enumerated else 2)
    count = num_rows * _COLUMNS
    of_row = torch.arange(num_rows).repeat_interleave(_COLUMNS)
    noise = [torch.randn((count, size), generator=generator) for size in config.z_dims]
    if vae.latent.enumerated:
        drawn = torch.multinomial(vae.latent.component_probs, count, replacement=True, generator=generator)
        likeliest = vae.latent.component_probs.argsort(descending=True)
        noise.insert(0, drawn if config.num_classes else likeliest[of_row])
    loc_img: Tensor = vae.decoder(vae.latent.prior(*noise), of_row if config.num_classes else None)
    return loc_img


def _traversal(vae: VAE, z_loc: Tensor, label: Tensor | None) -> Tensor:
    """The first sample's z, one dimension a row moved through its range; those that vary most over the samples."""
    spread = z_loc.std(0)
    dimensions = spread.argsort(descending=True)[:_ROWS]
    z = z_loc[0].repeat(len(dimensions), _COLUMNS, 1)
    steps = torch.linspace(-_SPAN, _SPAN, _COLUMNS)
    for row, dimension in enumerate(dimensions):
        z[row, :, dimension] = z_loc[:, dimension].mean() + steps * spread[dimension]
    z = z.flatten(0, 1)
    loc_img: Tensor = vae.decoder(z, None if label is None else label.expand(len(z)))
    return loc_img


def _label(reference: Reference) -> Tensor | None:
    """The first sample's class."""
    return torch.from_numpy(reference["y"][:1]) if "y" in reference.arrays else None


def _shown(vae: VAE, values: np.ndarray) -> np.ndarray:
    """Values as grey from 0 to 1; where the data has any range, two of its standard deviations to either side."""
    if vae.decoder.likelihood.unit_interval:
        return values
    data_loc, data_scale = (np.asarray(each, np.float32) for each in (vae.config.data_loc, vae.config.data_scale))
    return (values - data_loc) / (4 * data_scale) + 0.5
