"""A training in MLflow."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgevae.train import VAE, Dataset, EpochMetrics, ModelConfig, TrainingConfig, run_config
from edgevae.train.errors import InstallError
from edgevae.train.mlflow_log import RUN_ID_FILE, MlflowLog
from edgevae.train.run import CONFIG_FILE, WEIGHTS_FILE, DatasetInfo

METRICS = EpochMetrics(2, 31.0, -30.0, 1, 0.5, step=20, learning_rate=1e-3)


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
    path.mkdir()
    config = run_config(ModelConfig((1, 8, 8), z_dim=3), TrainingConfig(), DatasetInfo.of(digits))
    (path / CONFIG_FILE).write_text(msgspec.json.encode(config).decode())
    (path / WEIGHTS_FILE).write_bytes(b"weights")
    (path / "checkpoint.safetensors").write_bytes(b"large")
    return path


def train(folder: Path, dataset: Dataset, before: list[EpochMetrics]) -> None:
    log = MlflowLog()
    log.on_begin(folder, VAE(ModelConfig((1, 8, 8), z_dim=3, hidden_dim=4)), dataset, before)
    log.on_epoch(METRICS)
    log.on_end()


def test_parameters_metrics_and_files_are_logged(mlflow: Recorder, folder: Path, digits: Dataset) -> None:
    train(folder, digits, [])
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


def test_a_training_that_goes_on_goes_on_with_its_run(mlflow: Recorder, folder: Path, digits: Dataset) -> None:
    train(folder, digits, [])
    train(folder, digits, [METRICS])
    assert mlflow.of("start") == ["my-run", "id-7"]
    assert len(mlflow.of("params")) == 1
    train(folder, digits, [])
    assert mlflow.of("start")[-1] == "my-run"


def test_a_run_that_the_process_has_is_taken_and_left_open(mlflow: Recorder, folder: Path, digits: Dataset) -> None:
    mlflow.active = types.SimpleNamespace(info=types.SimpleNamespace(run_id="theirs"))
    train(folder, digits, [])
    assert mlflow.of("start") == mlflow.of("end") == []
    assert len(mlflow.of("params")) == len(mlflow.of("metrics")) == 1
    assert not (folder / RUN_ID_FILE).exists()


def test_a_training_that_fails_before_its_first_epoch_logs_nothing(
    mlflow: Recorder, tmp_path: Path, digits: Dataset
) -> None:
    log = MlflowLog()
    log.on_begin(tmp_path / "none", VAE(ModelConfig((1, 8, 8), z_dim=3, hidden_dim=4)), digits, [])
    log.on_end()
    assert mlflow.calls == []


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(InstallError, match="needs its package; pip install mlflow"):
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
        train(folder, digits, [])
        train(folder, digits, [METRICS])
        run = mlflow.MlflowClient().get_run((folder / RUN_ID_FILE).read_text())
        artifacts = {file.path for file in mlflow.MlflowClient().list_artifacts(run.info.run_id)}
    finally:
        mlflow.set_tracking_uri(None)
    assert run.info.status == "FINISHED"
    assert run.data.params["model.z_dim"] == "3"
    assert run.data.metrics["test_elbo_nats"] == -30.0
    assert artifacts == {CONFIG_FILE, WEIGHTS_FILE}
