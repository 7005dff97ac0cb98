"""A training in MLflow."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .data import Dataset
from .errors import InstallError
from .data import Images
from .observer import Observer
from .report import REPORT_FILES
from .run import CONFIG_FILE, EVALUATION_FILE, METRICS_FILE, WEIGHTS_FILE, EpochMetrics, read_config, write_whole
from .vae import VAE

RUN_ID_FILE = "mlflow_run_id"
"""Holds the id of MLflow's run, so that a training that is resumed goes on with it."""

_ARTIFACTS = (CONFIG_FILE, WEIGHTS_FILE, METRICS_FILE, EVALUATION_FILE, *REPORT_FILES)


class MlflowLog(Observer):
    """Logs a training to MLflow, where its own settings say: `MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME`.

    The configuration goes there as parameters, each epoch's numbers as metrics with the epoch as their step, and at the
    end weights, evaluation and report as artifacts. Where the process has a run of MLflow's already, that one is taken,
    and left open.

    Raises:
        InstallError: The package mlflow is not installed.
    """

    def __init__(self) -> None:
        try:
            self._mlflow: Any = importlib.import_module("mlflow")
        except ImportError as error:
            raise InstallError("a log to MLflow needs its package; pip install mlflow") from error
        self._begun = False
        self._own = False

    def on_begin(self, folder: Path, vae: VAE, dataset: Dataset[Images], metrics: Sequence[EpochMetrics]) -> None:  # noqa: ARG002 - for other observers
        """Remember the run; MLflow's begins with the first epoch, as the run's folder does."""
        self._folder = folder
        self._resumed = bool(metrics)
        self._begun = False

    def on_epoch(self, metrics: EpochMetrics) -> None:
        """Log an epoch's numbers."""
        if not self._begun:
            self._begin()
        numbers = dataclasses.asdict(metrics)
        epoch = numbers.pop("epoch")
        found = {name: float(value) for name, value in numbers.items() if value is not None}
        self._mlflow.log_metrics(found, step=epoch)

    def on_end(self) -> None:
        """Log the files, and end the run that was begun here."""
        if not self._begun:
            return
        for file in _ARTIFACTS:
            if (self._folder / file).is_file():
                self._mlflow.log_artifact(str(self._folder / file))
        if self._own:
            self._mlflow.end_run()

    def _begin(self) -> None:
        """Begin a run of MLflow's, or go on with the one that an earlier start of this training began."""
        self._begun, self._own = True, self._mlflow.active_run() is None
        id_file = self._folder / RUN_ID_FILE
        known = id_file.read_text().strip() if self._resumed and id_file.is_file() else None
        if self._own:
            run = self._mlflow.start_run(run_id=known) if known else self._mlflow.start_run(run_name=self._folder.name)
            write_whole(id_file, run.info.run_id.encode())
        if not (self._own and known):  # MLflow lets no parameter be said twice with another value
            config = dataclasses.asdict(read_config(self._folder))
            self._mlflow.log_params(dict(_flat(config)))


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested options with names such as `model.z_dim`."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
