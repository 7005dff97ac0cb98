"""The model card: the bundle's README.md and its picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from runtime import Manifest, Reference, Report
from runtime.images import can_draw, save_grid
from train import VAE

CARD_FILE = "README.md"
PICTURE_FILE = "samples.png"
_COLUMNS = 12


def write_card(folder: Path, manifest: Manifest, reports: Sequence[Report], data_note: str) -> None:
    """Write the bundle's README.md.

    Args:
        folder: The bundle.
        manifest: What the bundle is.
        reports: The verifications that it passed.
        data_note: What the reference's samples and the picture's images are.
    """
    model = manifest.model
    shape = " x ".join(map(str, model.data_shape))
    value_range = "values in [0, 1]" if model.unit_interval else "values in any range"
    lines = [
        f"# {manifest.name}",
        "",
        "A variational autoencoder, trained with Pyro and exported by EdgeVAE. Runs with NumPy and ONNX Runtime.",
        "",
        *(_picture_lines(data_note) if can_draw(model.data_shape) else []),
        "| | |",
        "| --- | --- |",
        f"| architecture | {model.architecture}, {model.data_dim}-{model.hidden_dim}-{model.z_dim} |",
        f"| observations | shape {shape}, {value_range} (or uint8 in [0, 255]) |",
        f"| likelihood | {model.likelihood} |",
        f"| latent | {model.latent}, {model.z_dim} dimensions |",
        *_dataset_lines(manifest),
        f"| latent space | `{manifest.latent_space_id[:16]}` |",
        f"| made with | {', '.join(f'{name} {version}' for name, version in manifest.producers.items())} |",
        "",
        "## Use",
        "",
        *(_onnx_use(manifest) if manifest.graphs else _torch_use(manifest)),
        "",
        "## Verified against Pyro",
        "",
        *(line for report in reports for line in ("```", str(report), "```", "")),
    ]
    (folder / CARD_FILE).write_text("\n".join(lines), encoding="utf-8")


def draw_picture(folder: Path, vae: VAE, reference: Reference) -> None:
    """Draw samples, their reconstructions, and draws from the prior, as Pyro computes them, where they are images."""
    if not can_draw(vae.config.data_shape):
        return
    rows = np.flatnonzero(reference.case == "sample")[:_COLUMNS]
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        generated = vae.decoder(torch.randn((2 * _COLUMNS, vae.config.z_dim), generator=generator)).numpy()
    images = np.concatenate([reference["x"][rows], reference["loc_img"][rows], generated])
    save_grid(folder / PICTURE_FILE, images, vae.config.data_shape, _COLUMNS)


def _picture_lines(data_note: str) -> list[str]:
    return [
        f"![test images, reconstructions, samples]({PICTURE_FILE})",
        "",
        f"{data_note[0].upper()}{data_note[1:]}, their reconstructions below them, and then samples of the prior.",
        "",
    ]


def _dataset_lines(manifest: Manifest) -> list[str]:
    dataset = manifest.dataset
    if dataset is None:
        return ["| trained on | not known: exported from a state_dict |"]
    draws = f"{dataset.num_particles} particle{'s' * (dataset.num_particles > 1)}"
    return [
        f"| trained on | {dataset.name}, {dataset.num_train} images |",
        f"| test ELBO | {dataset.test_elbo_nats:.2f} nats an image, {dataset.num_test} images, {draws} |",
    ]


def _onnx_use(manifest: Manifest) -> list[str]:
    return [
        "```python",
        "import runtime  # pip install 'edgevae[cpu]'",
        "",
        f'model = runtime.load("{manifest.name}")  # the path of this folder',
        "images = model.generate(16, seed=0).reshape(-1, *model.data_shape)",
        "posterior = model.encode(images)  # z_loc, z_scale",
        "loc_img = model.reconstruct(images, seed=0)  # what Pyro's reconstruct_img gives from the same seed",
        "```",
    ]


def _torch_use(manifest: Manifest) -> list[str]:
    files = ", ".join(f"`{entry.file}`" for entry in manifest.torch_files.values())
    return [f"This bundle is for PyTorch only: {files}. Export with `--format onnx` to run without PyTorch."]
