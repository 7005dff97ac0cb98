"""Test ELBO and log p(x) of bundles, over the test set of their own data.

    python -m benchmarks.likelihood models/mnist-mlp models/mnist-conv --data-dir ~/mnist --num-particles 1000

The runtime estimates both. log p(x) is the importance-weighted lower bound (Burda, Grosse & Salakhutdinov, 2016). Do
not compare numbers of different likelihoods, or of differently binarized data: they are not on one scale.
"""

from __future__ import annotations

import time
from pathlib import Path

import click
import numpy as np

import edgevae
from edgevae.train import DatasetName, binarize_once, load_dataset

_SEED = 0
_ELBO_PARTICLES = 10


@click.command(context_settings={"show_default": True})
@click.argument("bundles", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--data-dir", type=click.Path(exists=True, path_type=Path), help="Folder with the IDX files.")
@click.option("--num-particles", type=click.IntRange(min=1), default=1000, help="Draws of z an image for log p(x).")
@click.option("--num-images", type=click.IntRange(min=1), help="A random subset of the test set.  [default: all]")
def main(bundles: tuple[Path, ...], data_dir: Path | None, num_particles: int, num_images: int | None) -> None:
    """Print a row for each of BUNDLES."""
    click.echo(
        "| bundle | model | values | test ELBO, all images, nats | images | their ELBO, nats "
        "| their log p(x), of conditional ones log p(x given y), nats | particles | minutes |"
    )
    click.echo(f"|{' --- |' * 9}")
    for bundle in bundles:
        click.echo(_row(edgevae.load(bundle), data_dir, num_particles, num_images))


def _row(model: edgevae.Model, data_dir: Path | None, num_particles: int, num_images: int | None) -> str:
    spec, dataset = model.manifest.model, model.manifest.dataset
    if dataset is None:
        raise click.ClickException(f"{model.manifest.name} does not say what it was trained on")
    name: DatasetName = dataset.name  # type: ignore[assignment]  # load_dataset says which there are
    data = load_dataset(name, data_dir, labels=spec.num_classes > 0)
    x = binarize_once(data.test, dataset.binarize).numpy()
    picked = np.arange(len(x))
    if num_images is not None:
        picked = np.random.RandomState(_SEED).permutation(len(x))[:num_images]
    y = None if data.test_labels is None else data.test_labels.numpy()[picked]
    start = time.perf_counter()
    elbo = model.elbo(x[picked], _SEED, _ELBO_PARTICLES, y=y)
    log_px = model.log_likelihood(x[picked], _SEED, num_particles, y=y)
    minutes = (time.perf_counter() - start) / 60
    choices = [spec.architecture, spec.sizes, spec.likelihood, spec.latent, *["conditional"] * (spec.num_classes > 0)]
    values = "grey" if dataset.binarize == "none" else f"binarized ({dataset.binarize})"
    return (
        f"| {model.manifest.name} | {', '.join(choices)} | {values} | {dataset.test_elbo_nats:.2f} | {len(picked)} "
        f"| {elbo.mean():.2f} | {log_px.mean():.2f} | {num_particles} | {minutes:.1f} |"
    )


if __name__ == "__main__":
    main()
