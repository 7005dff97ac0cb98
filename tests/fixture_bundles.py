"""Make the bundles of the current schema that later versions must still read.

    python -m tests.fixture_bundles tests/fixtures/bundles/v1

Existing bundles are never replaced: files that were once written must stay readable. A new schema gets a new folder.
Together the bundles cover the likelihoods, the latents and all fields of a manifest. The models are tiny; for `conv`,
which is not, there is `models/mnist-conv`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click
import torch
from torch import Tensor

from edgevae import DatasetSpec, Part, Preprocessing, ReducedPrecision
from edgevae.export import Format, Source, export_bundle
from edgevae.train import Dataset, ModelConfig, Trainer, TrainingConfig, load_dataset

_EPOCHS = 30
_WHITE = 0.3
_BETA = 0.1  # small, so that z carries much information and each weight affects the outputs
_SMALL = ModelConfig((1, 3, 3), z_dim=2, hidden_dim=16)


@dataclasses.dataclass(frozen=True)
class Kind:
    """The choices of one bundle."""

    config: ModelConfig = _SMALL
    formats: tuple[Format, ...] = ("onnx",)
    part: Part = "all"
    limits_nats: tuple[tuple[ReducedPrecision, float], ...] = ()
    preprocessing: Preprocessing | None = None
    class_names: tuple[str, ...] = ()


KINDS = {
    "mlp": Kind(formats=("onnx", "torchscript"), limits_nats=(("fp16", 0.1), ("int8", 0.5))),
    "encoder": Kind(part="encoder"),
    "decoder": Kind(dataclasses.replace(_SMALL, likelihood="categorical", levels=3), part="decoder"),
    "mixture": Kind(dataclasses.replace(_SMALL, likelihood="continuous-bernoulli", latent="mixture", components=3)),
    "hierarchical": Kind(
        dataclasses.replace(_SMALL, latent="hierarchical", upper_dims=(2,), num_classes=10),
        preprocessing=Preprocessing(scale=(0.0, 16.0), resize=(3, 3), grey=True, channels_last=True),
        class_names=tuple(f"digit {number}" for number in range(10)),
    ),
    "table": Kind(
        dataclasses.replace(
            _SMALL,
            data_shape=(4,),
            likelihood="normal",
            data_loc=(0.1, 40.0, 0.0, 3000.0),
            data_scale=(0.2, 9.0, 1.0, 800.0),
        )
    ),
}


def make(name: str, folder: Path, digits: Dataset) -> Path:
    """Train a model and export it. The same versions of the libraries give the same bundle.

    Args:
        name: One of `KINDS`.
        folder: Parent of the bundle's folder.
        digits: Images of 8 by 8 pixels, with labels.
    """
    kind = KINDS[name]
    train, test = (_observations(kind.config, images) for images in (digits.train, digits.test))
    trainer = Trainer(kind.config, TrainingConfig(batch_size=64, learning_rate=1e-2, beta=_BETA), torch.device("cpu"))
    labelled = kind.config.num_classes > 0
    for _ in range(_EPOCHS):
        loss = trainer.fit_epoch(train, labels=digits.train_labels if labelled else None)
    dataset = DatasetSpec(
        name="digits",
        num_train=len(train),
        num_test=len(test),
        test_elbo_nats=-round(loss, 3),
        num_particles=1,
        binarize="none",
        elbo_quantiles=((0.01, -round(2 * abs(loss), 3)), (0.99, round(abs(loss), 3))),
        class_names=kind.class_names,
    )
    source = Source(
        name,
        trainer.vae.eval(),
        test,
        "test images of digits, averaged to 3 by 3",
        dataset,
        digits.test_labels if labelled else None,
        {"epochs": _EPOCHS, "learning_rate": 1e-2, "beta": _BETA, "jit": False, "binarize": "none"},
        license="Apache-2.0",
        preprocessing=kind.preprocessing,
    )
    export_bundle(source, folder / name, kind.formats, part=kind.part, precisions=dict(kind.limits_nats))
    for path in (folder / name).iterdir():
        if path.suffix in {".md", ".png"}:  # for people; the runtime does not read them
            path.unlink()
    return folder / name


def _observations(config: ModelConfig, images: Tensor) -> Tensor:
    """Return images of 3 by 3 pixels, binary for a Bernoulli; for a table, four of the values in the columns' units."""
    small = torch.nn.functional.adaptive_avg_pool2d(images, 3)
    if config.likelihood == "bernoulli":  # from grey ones the decoder would learn only the mean, and z would be unused
        return (small > _WHITE).float()
    if config.data_shape == _SMALL.data_shape:
        return small
    columns = small.flatten(1)[:, : config.data_dim]
    loc, scale = torch.tensor(config.data_loc), torch.tensor(config.data_scale)
    return (columns - columns.mean(0)) / columns.std(0) * scale + loc


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def main(folder: Path) -> None:
    """Make the bundles that are not in FOLDER yet."""
    digits = load_dataset("digits", labels=True)
    for name in KINDS:
        if not (folder / name).exists():
            click.echo(make(name, folder, digits))


if __name__ == "__main__":
    main()
