"""The pictures of a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from edgevae.export import make_reference
from edgevae.export.pictures import SAMPLES_FILE, TRAVERSAL_FILE, draw_pictures, what_is_generated
from edgevae.train import VAE, Dataset, ModelConfig, load_dataset

TILE, GAP = 56, 7  # an image of 8 by 8 is enlarged seven times


@pytest.fixture(scope="module")
def labelled() -> Dataset:
    return load_dataset("digits", labels=True)


def tiles(path: Path) -> NDArray[np.uint8]:
    """The images of a grid, shape `(rows, columns, height, width)`."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))[GAP:, GAP:]
    step = TILE + GAP
    rows, columns = pixels.shape[0] // step, pixels.shape[1] // step
    return pixels.reshape(rows, step, columns, step).transpose(0, 2, 1, 3)[..., :TILE, :TILE]


def draw(folder: Path, labelled: Dataset, **choices: Any) -> VAE:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        vae = VAE(ModelConfig((1, 8, 8), 5, 16, **choices)).eval()
        with torch.no_grad():
            for parameter in vae.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    draw_pictures(
        folder, vae, make_reference(vae, labelled.test, labelled.test_labels if vae.config.num_classes else None)
    )
    return vae


def test_samples_stand_above_their_reconstructions_and_above_draws_of_the_prior(
    labelled: Dataset, tmp_path: Path
) -> None:
    vae = draw(tmp_path, labelled)
    found = tiles(tmp_path / SAMPLES_FILE)
    assert found.shape == (4, 12, TILE, TILE)
    shown = np.rint(labelled.test[:12, 0].numpy() * 255)
    np.testing.assert_array_equal(found[0, :, ::7, ::7], shown)
    assert what_is_generated(vae) == "samples of the prior"


def shown(loc_img: torch.Tensor) -> NDArray[np.float64]:
    return np.asarray(loc_img.reshape(-1, 8, 8).numpy() * 255, np.float64)


def test_a_conditional_model_shows_a_class_a_row(labelled: Dataset, tmp_path: Path) -> None:
    vae = draw(tmp_path, labelled, num_classes=10)
    found = tiles(tmp_path / SAMPLES_FILE)
    assert found.shape[0] == 2 + 10
    assert "a class a row" in what_is_generated(vae)
    z = torch.randn((120, 5), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = shown(vae.decoder(z, torch.arange(10).repeat_interleave(12))).reshape(10, 12, 8, 8)
    np.testing.assert_allclose(found[2:, :, ::7, ::7], expected, atol=1)


def test_a_mixture_shows_a_component_a_row_the_likeliest_first(labelled: Dataset, tmp_path: Path) -> None:
    vae = draw(tmp_path, labelled, latent="mixture", components=3)
    found = tiles(tmp_path / SAMPLES_FILE)
    assert found.shape[0] == 2 + 3
    assert "a component of the mixture a row" in what_is_generated(vae)
    eps = torch.randn((36, 5), generator=torch.Generator().manual_seed(0)).reshape(3, 12, 5)
    with torch.no_grad():
        for row, component in enumerate(vae.latent.component_probs.argsort(descending=True).tolist()):
            z = vae.latent.prior(torch.full((12,), component), eps[row])
            np.testing.assert_allclose(found[2 + row, :, ::7, ::7], shown(vae.decoder(z)), atol=1)


def test_a_conditional_mixture_shows_a_class_a_row(labelled: Dataset, tmp_path: Path) -> None:
    draw(tmp_path, labelled, num_classes=10, latent="mixture", components=3)
    assert tiles(tmp_path / SAMPLES_FILE).shape[0] == 2 + 10


def test_a_traversal_moves_one_dimension_a_row(labelled: Dataset, tmp_path: Path) -> None:
    vae = draw(tmp_path, labelled)
    found = tiles(tmp_path / TRAVERSAL_FILE).astype(int)
    assert found.shape == (5, 12, TILE, TILE)  # as many rows as the latent has dimensions
    assert (np.abs(np.diff(found, axis=1)).max((2, 3)) <= 40).all()  # in small steps
    assert (np.abs(found[:, -1] - found[:, 0]).max((1, 2)) > 3).all()
    with torch.no_grad():
        z_loc, _ = vae.encoder(labelled.test[:254])
        widest = int(z_loc.std(0).argmax())
        z = z_loc[0].clone()
        z[widest] = z_loc[:, widest].mean() - 3 * z_loc[:, widest].std()
        expected = vae.decoder(z[None]).reshape(8, 8).numpy() * 255
    np.testing.assert_allclose(found[0, 0, ::7, ::7], expected, atol=1)


def test_data_in_any_range_is_shown_in_the_middle_of_the_greys(labelled: Dataset, tmp_path: Path) -> None:
    vae = VAE(ModelConfig((1, 8, 8), 5, 16, likelihood="normal", data_loc=100.0, data_scale=20.0)).eval()
    draw_pictures(tmp_path, vae, make_reference(vae, 100 + 20 * torch.randn(254, 1, 8, 8)))
    assert 100 < tiles(tmp_path / SAMPLES_FILE)[0].mean() < 155
