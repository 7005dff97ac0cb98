"""What an observer writes of a training: TensorBoard's log, MLflow's run."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import msgspec
import pyro
import pytest
import torch

from edgevae.train import (
    VAE,
    Dataset,
    DatasetInfo,
    EpochMetrics,
    InstallError,
    MlflowLog,
    ModelConfig,
    TensorBoardLog,
    TrainingConfig,
    load_dataset,
    run_config,
)
from edgevae.train.observers import MLFLOW_RUN_ID_FILE, TENSORBOARD_FOLDER
from edgevae.train.run import CONFIG_FILE, WEIGHTS_FILE

needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="needs the package tensorboard"
)

METRICS = EpochMetrics(2, 31.0, -30.0, 1, 0.5, step=20, learning_rate=1e-3)


def metrics_of(epoch: int, elbo: float = -30.0) -> EpochMetrics:
    return EpochMetrics(epoch, -elbo, elbo - epoch, 1, 0.5, step=10 * epoch, learning_rate=1e-3, beta=0.5)


def write_config(folder: Path, model: ModelConfig, dataset: Dataset) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = run_config(model, TrainingConfig(), DatasetInfo.of(dataset))
    (folder / CONFIG_FILE).write_text(msgspec.json.encode(config).decode())


def logged(folder: Path, vae: VAE, dataset: Dataset, epochs: list[EpochMetrics], before: list[EpochMetrics]) -> None:
    log = TensorBoardLog()
    log.on_begin(folder, vae, dataset, before)
    write_config(folder, vae.config, dataset)  # the run has it once the first epoch has ended
    for metrics in epochs:
        log.on_step(torch.tensor(1.0))
        log.on_epoch(metrics)
    log.on_end()


def read(folder: Path) -> Any:
    accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    return accumulator.EventAccumulator(
        str(folder / TENSORBOARD_FOLDER), size_guidance={"histograms": 0, "images": 0}
    ).Reload()


def curve(events: Any, name: str) -> list[tuple[int, float]]:
    return [(point.step, round(point.value, 6)) for point in events.Scalars(name)]


@pytest.fixture
def vae() -> VAE:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return VAE(ModelConfig((1, 8, 8), z_dim=3, hidden_dim=8))


@needs_tensorboard
def test_each_epoch_is_logged_with_numbers_pictures_and_histograms(tmp_path: Path, vae: VAE, digits: Dataset) -> None:
    logged(tmp_path / "run", vae, digits, [metrics_of(1), metrics_of(2)], [])
    events = read(tmp_path / "run")
    assert curve(events, "loss/train") == [(1, 30.0), (2, 30.0)]
    assert curve(events, "elbo/test") == [(1, -31.0), (2, -32.0)]
    assert curve(events, "schedule/beta") == [(1, 0.5), (2, 0.5)]
    assert "elbo/validation" not in events.Tags()["scalars"]
    assert events.Tags()["images"] == ["images/reconstructions", "images/samples"]
    assert [picture.step for picture in events.Images("images/samples")] == [1, 2]
    z_loc = vae.encoder(digits.test)[0].detach()
    histogram = events.Histograms("latent/z_loc")[1].histogram_value
    assert histogram.num == z_loc.numel()
    assert histogram.sum == pytest.approx(float(z_loc.sum()), rel=1e-4)
    assert events.Histograms("latent/z_scale")[0].histogram_value.min > 0


@needs_tensorboard
def test_a_resumed_training_continues_the_curves(tmp_path: Path, vae: VAE, digits: Dataset) -> None:
    first = [metrics_of(epoch) for epoch in (1, 2, 3)]
    logged(tmp_path, vae, digits, first, [])
    # The checkpoint was from after the second epoch: the third is made again.
    logged(tmp_path, vae, digits, [metrics_of(3, -20), metrics_of(4, -20)], first[:2])
    assert curve(read(tmp_path), "loss/train") == [(1, 30.0), (2, 30.0), (3, 20.0), (4, 20.0)]


@needs_tensorboard
def test_epochs_from_before_the_log_are_in_it(tmp_path: Path, vae: VAE, digits: Dataset) -> None:
    logged(tmp_path, vae, digits, [metrics_of(3, -20)], [metrics_of(1), metrics_of(2)])
    assert curve(read(tmp_path), "loss/train") == [(1, 30.0), (2, 30.0), (3, 20.0)]


@needs_tensorboard
def test_a_new_run_begins_a_new_log(tmp_path: Path, vae: VAE, digits: Dataset) -> None:
    for elbo in (-30, -20):
        logged(tmp_path, vae, digits, [metrics_of(1, elbo)], [])
    assert curve(read(tmp_path), "loss/train") == [(1, 20.0)]


@needs_tensorboard
def test_a_training_that_fails_before_its_first_epoch_leaves_no_log(tmp_path: Path, vae: VAE, digits: Dataset) -> None:
    log = TensorBoardLog()
    log.on_begin(tmp_path / "run", vae, digits, [])
    log.on_end()
    assert not (tmp_path / "run").exists()


@needs_tensorboard
def test_data_other_than_images_are_logged_without_pictures(tmp_path: Path) -> None:
    table = torch.rand(20, 6)
    logged(tmp_path, VAE(ModelConfig((6,), z_dim=2, hidden_dim=4)), Dataset("t", table, table), [metrics_of(1)], [])
    assert read(tmp_path).Tags()["images"] == []


@needs_tensorboard
def test_a_conditional_model_is_logged_with_its_labels(tmp_path: Path) -> None:
    conditional = VAE(ModelConfig((1, 8, 8), z_dim=2, hidden_dim=4, num_classes=10))
    logged(tmp_path, conditional, load_dataset("digits", labels=True), [metrics_of(1)], [])
    assert len(read(tmp_path).Images("images/samples")) == 1


@needs_tensorboard
def test_logging_changes_nothing(tmp_path: Path, vae: VAE, digits: Dataset) -> None:
    vae.train()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    logged(tmp_path, vae, digits, [metrics_of(1)], [])
    assert torch.equal(torch.get_rng_state(), state)
    assert vae.training
    assert len(pyro.get_param_store()) == 0


def test_a_missing_tensorboard_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InstallError, match="needs a package; pip install tensorboard"):
        TensorBoardLog()


class Recorder(types.ModuleType):
    """Stands for the package mlflow, and remembers what is asked of it."""

    def __init__(self) -> None:
        super().__init__("mlflow")
        self.calls: list[tuple[str, Any]] = []
        self.active: Any = None

    def active_run(self) -> Any:
        return self.active

    def start_run(self, run_id: str | None = None, run_name: str | None = None) -> Any:
        self.calls.append(("start", run_id or run_name))
        self.active = types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id or "id-7"))
        return self.active

    def log_params(self, params: dict[str, Any]) -> None:
        self.calls.append(("params", params))

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.calls.append(("metrics", (step, metrics)))

    def log_artifact(self, path: str) -> None:
        self.calls.append(("artifact", Path(path).name))

    def end_run(self) -> None:
        self.calls.append(("end", None))
        self.active = None

    def of(self, kind: str) -> list[Any]:
        return [content for name, content in self.calls if name == kind]


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, "mlflow", recorder)
    return recorder


@pytest.fixture
def folder(tmp_path: Path, digits: Dataset) -> Path:
    """A run's folder as it is after an epoch."""
    path = tmp_path / "my-run"
    write_config(path, ModelConfig((1, 8, 8), z_dim=3), digits)
    (path / WEIGHTS_FILE).write_bytes(b"weights")
    (path / "checkpoint.safetensors").write_bytes(b"large")
    return path


def log_to_mlflow(folder: Path, dataset: Dataset, before: list[EpochMetrics]) -> None:
    log = MlflowLog()
    log.on_begin(folder, VAE(ModelConfig((1, 8, 8), z_dim=3, hidden_dim=4)), dataset, before)
    log.on_epoch(METRICS)
    log.on_end()


def test_mlflow_gets_parameters_metrics_and_files(mlflow: Recorder, folder: Path, digits: Dataset) -> None:
    log_to_mlflow(folder, digits, [])
    assert [name for name, _ in mlflow.calls] == ["start", "params", "metrics", "artifact", "artifact", "end"]
    assert mlflow.of("start") == ["my-run"]
    (params,) = mlflow.of("params")
    assert params["model.z_dim"] == 3
    assert params["training.learning_rate"] == 1e-3
    ((step, metrics),) = mlflow.of("metrics")
    assert step == 2
    assert metrics["test_elbo_nats"] == -30.0
    assert metrics["complete"] == 1.0
    assert "validation_elbo_nats" not in metrics
    assert mlflow.of("artifact") == [CONFIG_FILE, WEIGHTS_FILE]


def test_a_resumed_training_continues_its_mlflow_run(mlflow: Recorder, folder: Path, digits: Dataset) -> None:
    log_to_mlflow(folder, digits, [])
    log_to_mlflow(folder, digits, [METRICS])
    assert mlflow.of("start") == ["my-run", "id-7"]
    assert len(mlflow.of("params")) == 1
    log_to_mlflow(folder, digits, [])
    assert mlflow.of("start")[-1] == "my-run"


def test_an_active_mlflow_run_is_used_and_left_open(mlflow: Recorder, folder: Path, digits: Dataset) -> None:
    mlflow.active = types.SimpleNamespace(info=types.SimpleNamespace(run_id="theirs"))
    log_to_mlflow(folder, digits, [])
    assert mlflow.of("start") == mlflow.of("end") == []
    assert len(mlflow.of("params")) == len(mlflow.of("metrics")) == 1
    assert not (folder / MLFLOW_RUN_ID_FILE).exists()


def test_mlflow_gets_nothing_of_a_training_that_fails_before_its_first_epoch(
    mlflow: Recorder, tmp_path: Path, digits: Dataset
) -> None:
    log = MlflowLog()
    log.on_begin(tmp_path / "none", VAE(ModelConfig((1, 8, 8), z_dim=3, hidden_dim=4)), digits, [])
    log.on_end()
    assert mlflow.calls == []


def test_a_missing_mlflow_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(InstallError, match="needs a package; pip install mlflow"):
        MlflowLog()


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="needs the package mlflow")
@pytest.mark.filterwarnings("default")
def test_mlflow_itself_has_what_was_logged(
    folder: Path, tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = importlib.import_module("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "tracking").as_uri())
    try:
        log_to_mlflow(folder, digits, [])
        log_to_mlflow(folder, digits, [METRICS])
        run = mlflow.MlflowClient().get_run((folder / MLFLOW_RUN_ID_FILE).read_text())
        artifacts = {file.path for file in mlflow.MlflowClient().list_artifacts(run.info.run_id)}
    finally:
        mlflow.set_tracking_uri(None)
    assert run.info.status == "FINISHED"
    assert run.data.params["model.z_dim"] == "3"
    assert run.data.metrics["test_elbo_nats"] == -30.0
    assert artifacts == {CONFIG_FILE, WEIGHTS_FILE}
