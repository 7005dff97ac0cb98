"""How well a bundle's score separates its own test images from those of another data set.

    python -m benchmarks.outliers models/mnist-mlp --outliers fashion-mnist --outliers-dir ~/fashion

The bundle scores both sets, binarized as its training data were.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from sklearn.metrics import roc_auc_score

import edgevae
from edgevae.images import save_grid
from edgevae.train import DATASET_NAMES, DatasetName, binarize_once, load_dataset

_SHOWN = 10


@click.command(context_settings={"show_default": True})
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--data-dir", type=click.Path(exists=True, path_type=Path), help="Folder with the IDX files.")
@click.option("--outliers", type=click.Choice(DATASET_NAMES), required=True, help="The other data set.")
@click.option("--outliers-dir", type=click.Path(exists=True, path_type=Path), help="Folder with its IDX files.")
@click.option("--picture", type=click.Path(path_type=Path), help="A .png of BUNDLE's own most unusual test images.")
def main(
    bundle: Path,
    data_dir: Path | None,
    outliers: DatasetName,
    outliers_dir: Path | None,
    picture: Path | None,
) -> None:
    """Print the AUROC of the ELBO, and how many outliers BUNDLE's own threshold finds."""
    model = edgevae.load(bundle)
    dataset = model.manifest.dataset
    if dataset is None or model.num_classes:
        raise click.ClickException("the bundle must say what it was trained on, and see no labels")
    own: DatasetName = dataset.name  # type: ignore[assignment]  # load_dataset says which there are
    images = [
        binarize_once(load_dataset(name, folder).test, dataset.binarize).flatten(1).numpy()
        for name, folder in ((own, data_dir), (outliers, outliers_dir))
    ]
    scores = [model.score(x).elbo for x in images]
    auroc = roc_auc_score(np.repeat([1, 0], [len(part) for part in scores]), np.concatenate(scores))
    limit = model.threshold()
    own_rate, found = ((part < limit).mean() for part in scores)
    click.echo(
        f"{model.manifest.name}: AUROC {auroc:.4f} of {own} against {outliers}; median ELBO {np.median(scores[0]):.1f} "
        f"and {np.median(scores[1]):.1f} nats; below the threshold of 1 %: {own_rate:.4f} and {found:.4f}"
    )
    if picture is not None:
        unusual = np.argsort(scores[0])[:_SHOWN]
        x = images[0][unusual]
        save_grid(picture, np.concatenate([x, model.reconstruct(x)]), model.data_shape, _SHOWN)
        elbos = ", ".join(f"{elbo:.0f}" for elbo in scores[0][unusual])
        click.echo(f"{picture}: test images {', '.join(map(str, unusual))}; {elbos} nats; reconstructions below them")


if __name__ == "__main__":
    main()
