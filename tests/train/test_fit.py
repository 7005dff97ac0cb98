"""A whole training as a library call."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from train import (
    Dataset,
    DatasetInfo,
    EpochMetrics,
    ModelConfig,
    RunWriter,
    Trainer,
    TrainingConfig,
    binarize_once,
    elbo_of_each,
    fit,
    load_run,
    run_config,
)


class Silent:
    def on_step(self, loss: torch.Tensor) -> None: ...

    def on_epoch(self, metrics: EpochMetrics) -> None: ...


def fit_small(folder: Path, dataset: Dataset, training: TrainingConfig, architecture: str = "mlp") -> Trainer:
    model = ModelConfig(dataset.data_shape, 3, 8, architecture)
    trainer = Trainer(model, training, torch.device("cpu"))
    info = DatasetInfo(dataset.name, len(dataset.train), len(dataset.test))
    writer = RunWriter(folder, run_config(model, training, info), dataset.test)
    fit(trainer, dataset, training.epochs, writer, Silent())
    return trainer


def test_binarized_training_reports_and_keeps_binarized_test_images(tmp_path: Path, digits: Dataset) -> None:
    training = TrainingConfig(epochs=1, binarize="stochastic")
    trainer = fit_small(tmp_path / "run", digits, training)
    run = load_run(tmp_path / "run")
    assert set(run.samples.unique().tolist()) == {0.0, 1.0}
    expected = elbo_of_each(trainer.vae, binarize_once(digits.test, "stochastic"), 10).mean()
    assert run.metrics[-1].test_elbo_nats == pytest.approx(float(expected), rel=1e-6)
    grey = elbo_of_each(trainer.vae, digits.test, 10).mean()
    assert run.metrics[-1].test_elbo_nats != pytest.approx(float(grey), rel=1e-4)


@pytest.mark.parametrize(("shape", "drawn"), [((3, 8, 8), True), ((64,), True), ((8, 8), True), ((2, 8, 8), False)])
def test_data_of_any_shape_is_fitted_and_drawn_where_it_is_a_picture(
    tmp_path: Path, shape: tuple[int, ...], drawn: bool
) -> None:
    images = torch.rand((50, *shape), generator=torch.Generator().manual_seed(0))
    fit_small(tmp_path / "run", Dataset("rows", images, images), TrainingConfig(epochs=1))
    assert (tmp_path / "run" / "reconstructions.png").exists() == drawn


def test_colours_stay_colours(tmp_path: Path) -> None:
    red = torch.zeros(50, 3, 8, 8)
    red[:, 0] = 1
    fit_small(tmp_path / "run", Dataset("red", red, red), TrainingConfig(epochs=1), architecture="conv")
    with Image.open(tmp_path / "run" / "reconstructions.png") as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(100_000) or []}
    assert (255, 0, 0) in colours
