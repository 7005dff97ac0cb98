"""A training in TensorBoard."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch

from edgevae.train import VAE, Dataset, EpochMetrics, ModelConfig, TrainingConfig, load_dataset, run_config
from edgevae.train.errors import InstallError
from edgevae.train.run import CONFIG_FILE, DatasetInfo
from edgevae.train.tensorboard_log import FOLDER, TensorBoardLog

pytest.importorskip("tensorboard", reason="needs the package tensorboard")


def metrics_of(epoch: int, elbo: float = -30.0) -> EpochMetrics:
    return EpochMetrics(epoch, -elbo, elbo - epoch, 1, 0.5, step=10 * epoch, learning_rate=1e-3, beta=0.5)


def run_folder(folder: Path, vae: VAE, dataset: Dataset, binarize: Any = "none") -> None:
    """A folder as it is after the first epoch."""
    folder.mkdir(parents=True, exist_ok=True)
    info = DatasetInfo.of(dataset)
    config = run_config(vae.config, TrainingConfig(binarize=binarize), info)
    (folder / CONFIG_FILE).write_text(json.dumps(dataclasses.asdict(config)))


def logged(folder: Path, vae: VAE, dataset: Dataset, epochs: list[EpochMetrics], before: list[EpochMetrics]) -> None:
    log = TensorBoardLog()
    log.on_begin(folder, vae, dataset, before)
    run_folder(folder, vae, dataset)
    for metrics in epochs:
        log.on_step(torch.tensor(1.0))
        log.on_epoch(metrics)
    log.on_end()


def read(folder: Path) -> Any:
    accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    return accumulator.EventAccumulator(str(folder / FOLDER), size_guidance={"histograms": 0, "images": 0}).Reload()


def curve(events: Any, name: str) -> list[tuple[int, float]]:
    return [(point.step, round(point.value, 6)) for point in events.Scalars(name)]


@pytest.fixture
def vae() -> VAE:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return VAE(ModelConfig((1, 8, 8), z_dim=3, hidden_dim=8))


def test_each_epoch_is_logged_with_numbers_pictures_and_histograms(tmp_path: Path, vae: VAE, digits: Dataset) -> None:
    logged(tmp_path / "run", vae, digits, [metrics_of(1), metrics_of(2)], [])
    events = read(tmp_path / "run")
    assert curve(events, "loss/train") == [(1, 30.0), (2, 30.0)]
    assert curve(events, "elbo/test") == [(1, -31.0), (2, -32.0)]
    assert curve(events, "steering/beta") == [(1, 0.5), (2, 0.5)]
    assert "elbo/validation" not in events.Tags()["scalars"]
    assert events.Tags()["images"] == ["images/reconstructions", "images/samples"]
    assert [picture.step for picture in events.Images("images/samples")] == [1, 2]
    z_loc = vae.encoder(digits.test)[0].detach()
    histogram = events.Histograms("latent/z_loc")[1].histogram_value
    assert histogram.num == z_loc.numel()
    assert histogram.sum == pytest.approx(float(z_loc.sum()), rel=1e-4)
    assert events.Histograms("latent/z_scale")[0].histogram_value.min > 0


def test_a_training_that_goes_on_continues_the_curves(tmp_path: Path, vae: VAE, digits: Dataset) -> None:
    first = [metrics_of(epoch) for epoch in (1, 2, 3)]
    logged(tmp_path, vae, digits, first, [])
    # The checkpoint was from after the second epoch: the third is made again.
    logged(tmp_path, vae, digits, [metrics_of(3, -20), metrics_of(4, -20)], first[:2])
    assert curve(read(tmp_path), "loss/train") == [(1, 30.0), (2, 30.0), (3, 20.0), (4, 20.0)]


def test_epochs_from_before_the_log_are_in_it(tmp_path: Path, vae: VAE, digits: Dataset) -> None:
    logged(tmp_path, vae, digits, [metrics_of(3, -20)], [metrics_of(1), metrics_of(2)])
    assert curve(read(tmp_path), "loss/train") == [(1, 30.0), (2, 30.0), (3, 20.0)]


def test_a_new_run_begins_a_new_log(tmp_path: Path, vae: VAE, digits: Dataset) -> None:
    for elbo in (-30, -20):
        logged(tmp_path, vae, digits, [metrics_of(1, elbo)], [])
    assert curve(read(tmp_path), "loss/train") == [(1, 20.0)]


def test_a_training_that_fails_before_its_first_epoch_leaves_no_log(tmp_path: Path, vae: VAE, digits: Dataset) -> None:
    log = TensorBoardLog()
    log.on_begin(tmp_path / "run", vae, digits, [])
    log.on_end()
    assert not (tmp_path / "run").exists()


def test_data_that_are_no_images_are_logged_without_pictures(tmp_path: Path) -> None:
    table = torch.rand(20, 6)
    logged(tmp_path, VAE(ModelConfig((6,), z_dim=2, hidden_dim=4)), Dataset("t", table, table), [metrics_of(1)], [])
    assert read(tmp_path).Tags()["images"] == []


def test_a_conditional_model_is_logged_with_its_labels(tmp_path: Path) -> None:
    conditional = VAE(ModelConfig((1, 8, 8), z_dim=2, hidden_dim=4, num_classes=10))
    logged(tmp_path, conditional, load_dataset("digits", labels=True), [metrics_of(1)], [])
    assert len(read(tmp_path).Images("images/samples")) == 1


def test_the_log_touches_nothing(tmp_path: Path, vae: VAE, digits: Dataset) -> None:
    vae.train()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    logged(tmp_path, vae, digits, [metrics_of(1)], [])
    assert torch.equal(torch.get_rng_state(), state)
    assert vae.training
    assert len(pyro.get_param_store()) == 0


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InstallError, match="needs its package; pip install tensorboard"):
        TensorBoardLog()
