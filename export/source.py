"""What is exported: a trained model, and data to verify it with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from edgevae import DatasetSpec, Preprocessing
from edgevae.train import VAE, DatasetName, load_dataset, load_run
from edgevae.train.elbo import comparable
from edgevae.train.evaluation import collapse_advice

from .errors import ExportError

_PRIOR_DRAWS = 254
_PROBABILITIES = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)


@dataclasses.dataclass(frozen=True)
class Source:
    """A model and what its bundle says about it.

    Args:
        name: The model's name.
        vae: The trained model, on the CPU.
        samples: Observations to verify with, shape `(num_samples, *data_shape)`; at least one.
        labels: Their classes, shape `(num_samples,)`; `None` where the model is not conditional.
        samples_note: What they are, for the model card, like `test images of mnist`.
        dataset: What the model was trained on; `None` where that is not known.
        training: The options of the training, by name; empty where they are not known.
        version: The model's version, in the form of Python packages (PEP 440).
        license: The model's license, an SPDX expression; empty if none is stated.
        preprocessing: What the runtime does to values before a graph gets them; it was done to `samples` already.
            `None` for nothing.
        train_samples: Training observations, shape `(num_train_samples, *data_shape)`, at least one, to calibrate int8
            with; without them convolutions, and products of the latent, stay in float32.
        train_labels: Their classes, for a conditional model.
        outliers: The most extreme observations, shape `(num_outliers, *data_shape)`, at least one, to verify with too;
            `None` for the samples with the lowest ELBO.
        outlier_labels: Their classes, for a conditional model.
        collapse_advice: A sentence for the card where the posterior has collapsed; else empty.
    """

    name: str
    vae: VAE
    samples: Tensor
    samples_note: str
    dataset: DatasetSpec | None
    labels: Tensor | None = None
    training: Mapping[str, bool | int | float | str] = dataclasses.field(default_factory=dict)
    version: str = "1.0.0"
    license: str = ""
    preprocessing: Preprocessing | None = None
    train_samples: Tensor | None = None
    train_labels: Tensor | None = None
    outliers: Tensor | None = None
    outlier_labels: Tensor | None = None
    collapse_advice: str = ""


def source_of_run(path: Path, name: str) -> Source:
    """Return the model of the run in the folder `path` with its test images.

    Raises:
        RunError: There is no run, or it is damaged.
    """
    run = load_run(path)
    info = run.config.dataset
    test_elbo_nats, num_particles = run.test_elbo
    spec = DatasetSpec(
        name=info.name,
        num_train=info.num_train,
        num_test=info.num_test,
        test_elbo_nats=test_elbo_nats,
        num_particles=num_particles,
        binarize=run.config.training.binarize,
        elbo_quantiles=_quantiles(run.test_elbos),
        class_names=info.class_names,
    )
    training = dataclasses.asdict(run.config.training)
    evaluation = run.evaluations.get("test")
    advice = None if evaluation is None else collapse_advice(evaluation, run.config.training)
    source = Source(name, run.vae, run.samples, f"test images of {info.name}", spec, run.labels, training)
    return dataclasses.replace(
        source,
        preprocessing=None if info.preprocessing == Preprocessing() else info.preprocessing,
        train_samples=run.train_samples,
        train_labels=run.train_labels,
        outliers=run.outliers,
        outlier_labels=run.outlier_labels,
        collapse_advice=advice or "",
    )


def _quantiles(elbos: torch.Tensor | None) -> tuple[tuple[float, float], ...]:
    if elbos is None:
        return ()
    # JSON has no infinity: where a quantile is not finite, only rows whose ELBO is not finite lie below it.
    lowest = torch.finfo(elbos.dtype).min
    values = torch.quantile(comparable(elbos).clamp(min=lowest), torch.tensor(_PROBABILITIES))
    return tuple(zip(_PROBABILITIES, values.tolist(), strict=True))


def source_of_state_dict(vae: VAE, name: str, dataset: DatasetName | None, data_dir: Path | None) -> Source:
    """Return a model that was trained elsewhere, with images of a data set or samples of its own prior.

    Args:
        vae: The model.
        name: Its name.
        dataset: The data set; `None` for samples of the prior.
        data_dir: Folder with its files; `None` to download them.

    Raises:
        DatasetError: The data set cannot be loaded.
        ExportError: Its images do not have the model's shape.
    """
    if dataset is not None:
        images = load_dataset(dataset, data_dir)
        if images.data_shape != vae.config.data_shape:
            raise ExportError(
                f"the images of {dataset} have shape {images.data_shape}, the state_dict's {vae.config.data_shape}"
            )
        return Source(name, vae, images.test, f"test images of {dataset}", None, train_samples=images.train)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        z = torch.randn((_PRIOR_DRAWS, vae.config.z_dim), generator=generator)
        images = vae.decoder(z).reshape(-1, *vae.config.data_shape)
    return Source(name, vae, images, "images drawn from the model's own prior (no data set was given)", None)
