"""Reads what a run's folder says about itself, without its weights.

Older runs are read as well as newer ones: what they do not name has its default, and what is not known is left alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors
import safetensors.numpy

from ..config import ModelConfig, TrainingConfig
from ..errors import RunError
from ..run import (
    CHECKPOINT_FILE,
    CONFIG_FILE,
    EVALUATION_FILE,
    IMAGES,
    METRICS_FILE,
    SAMPLES_FILE,
    SCHEMA_VERSION,
    WEIGHTS_FILE,
    DatasetInfo,
)
from .summary import EpochLine, Evaluations, RunSummary

_FILES = (CONFIG_FILE, METRICS_FILE, WEIGHTS_FILE, CHECKPOINT_FILE)
_DEFAULTS_OF = {"model": ModelConfig, "training": TrainingConfig, "dataset": DatasetInfo}


class _Data(msgspec.Struct, frozen=True):
    name: str


class _Training(msgspec.Struct, frozen=True):
    epochs: int = TrainingConfig.epochs


class _Config(msgspec.Struct, frozen=True):
    schema_version: int
    model: ModelConfig
    dataset: _Data
    training: _Training


def read_runs(folder: Path) -> list[RunSummary]:
    """Return the runs in `folder`, or `folder` itself where it is a run; by name.

    Raises:
        RunError: `folder` is not there, or not readable.
    """
    try:
        places = [folder] if _holds_run(folder) else sorted(path for path in folder.iterdir() if _is_run_in_list(path))
    except OSError as error:
        raise RunError(
            f"the folder {folder} cannot be read ({error.strerror}); "
            "train a run with python -m train, or name the folder that holds runs"
        ) from error
    return [summarize(path) for path in places]


def summarize(path: Path) -> RunSummary:
    """Return what the run in the folder `path` says about itself; if that is damaged, the fault and what is left."""
    found: dict[str, Any] = {}
    fault = None
    try:
        found |= _read_config(path / CONFIG_FILE)
        found["lines"] = _read_metrics(path / METRICS_FILE)
        if (path / EVALUATION_FILE).exists():
            found["evaluations"] = _decode(path / EVALUATION_FILE, Evaluations)
    except RunError as error:
        fault = str(error)
    if found.get("lines") and not (path / WEIGHTS_FILE).is_file():
        fault = fault or f"{WEIGHTS_FILE} is missing"
    return RunSummary(path, _date(path), _size_bytes(path), fault, **found)


def same_samples(a: Path, b: Path) -> bool:
    """Whether two runs keep the same test observations; `True` where one of them keeps none that can be read."""
    try:
        first, second = (safetensors.numpy.load_file(path / SAMPLES_FILE)[IMAGES] for path in (a, b))
    except (OSError, KeyError, safetensors.SafetensorError):
        return True
    return np.array_equal(first, second)


def _read_config(path: Path) -> dict[str, Any]:
    content = _decode(path, dict[str, Any])
    version = content.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise RunError(f"{path.name} has schema version {version}, this edgevae reads up to {SCHEMA_VERSION}")
    config = _decode(path, _Config)
    sections = {name: value for name, value in content.items() if isinstance(value, dict)}
    options = {name: _defaults(_DEFAULTS_OF.get(name)) | section for name, section in sections.items()}
    return {
        "dataset": config.dataset.name,
        "model": config.model,
        "epochs": config.training.epochs,
        "options": options,
    }


def _read_metrics(path: Path) -> tuple[EpochLine, ...]:
    """Return the epochs' lines; none before the first epoch has ended."""
    if not path.exists():
        return ()
    try:
        return tuple(msgspec.json.Decoder(EpochLine).decode_lines(path.read_bytes()))
    except OSError as error:
        raise RunError(f"{path.name}: {error.strerror}") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise RunError(f"{path.name}: {error}") from error


def _decode(path: Path, kind: Any) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError as error:
        raise RunError(f"{path.name} is missing") from error
    except OSError as error:
        raise RunError(f"{path.name}: {error.strerror}") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise RunError(f"{path.name}: {error}") from error


def _defaults(section: Any) -> dict[str, Any]:
    if section is None:
        return {}
    with_default = [field for field in dataclasses.fields(section) if field.default is not dataclasses.MISSING]
    return {field.name: msgspec.json.decode(msgspec.json.encode(field.default)) for field in with_default}


def _is_run_in_list(path: Path) -> bool:
    return not path.name.startswith(".") and _holds_run(path)  # hidden: what somebody who was killed left


def _holds_run(path: Path) -> bool:
    try:
        return any((path / file).exists() for file in _FILES)
    except OSError:  # a folder that may not be read is listed with that fault
        return True


def _date(path: Path) -> datetime:
    try:
        seconds = (path / METRICS_FILE).stat().st_mtime
    except OSError:
        seconds = path.lstat().st_mtime
    return datetime.fromtimestamp(seconds, timezone.utc).astimezone()


def _size_bytes(path: Path) -> int:
    total = 0
    for folder, _, files in os.walk(path):
        for file in files:
            with contextlib.suppress(OSError):  # a running training replaces files
                total += (Path(folder) / file).lstat().st_size
    return total
