"""Fixtures of many tests: small models, a bundle, a Python without PyTorch."""

from __future__ import annotations

import functools
import gc
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from edgevae import Model, Report, load
from edgevae.export import FORMATS, Source, export_bundle
from edgevae.train import VAE, Dataset, ModelConfig, load_dataset
from edgevae.train.report import figures

REPOSITORY = Path(__file__).parent.parent
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # tests import ONNX Runtime before our runtime does


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what was imported: it would look at it again in every trace of a network."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_runtest_setup() -> None:
    """Start each test with the same seed, in any order of tests."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _operators_are_read_once() -> Iterator[None]:
    """Read the operators of ONNX and PyTorch once: the exporter would read them again for each graph, which is slow."""
    from torch._export.utils import _materialize_cpp_cia_ops
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        patch.setattr("torch._export.utils._materialize_cpp_cia_ops", functools.cache(_materialize_cpp_cia_ops))
        yield


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="session")
def vae() -> VAE:
    """An untrained model of the digits' shape, with weights so large that each layer affects the output."""
    with torch.random.fork_rng([]):
        torch.manual_seed(7)
        model = VAE(ModelConfig((1, 8, 8), z_dim=5, hidden_dim=16)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2)
    return model


@pytest.fixture(scope="session")
def source(vae: VAE, digits: Dataset) -> Source:
    return Source("small", vae, digits.test, "test images of digits", None)


@pytest.fixture(scope="session")
def exported_once(source: Source, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Report, ...]]:
    out = tmp_path_factory.mktemp("models") / "small"
    return out, export_bundle(source, out, FORMATS)


@pytest.fixture(scope="session")
def bundle(exported_once: tuple[Path, tuple[Report, ...]]) -> Path:
    """The model of `vae`, exported in all formats; tests that change files change a copy."""
    return exported_once[0]


@pytest.fixture(scope="session")
def reports(exported_once: tuple[Path, tuple[Report, ...]]) -> tuple[Report, ...]:
    """What the export of `bundle` returned."""
    return exported_once[1]


@pytest.fixture(scope="session")
def model(bundle: Path) -> Model:
    return load(bundle, provider="cpu")


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with `edgevae[cpu]`, without PyTorch: that of EDGEVAE_BARE_PYTHON, as in `make test`, or a new one."""
    if named := os.environ.get("EDGEVAE_BARE_PYTHON"):
        return Path(named)
    folder = tmp_path_factory.mktemp("bare") / "venv"
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", f"{REPOSITORY}[cpu]"], check=True)
    return python


@pytest.fixture
def coarse_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a report draw small figures, in less time."""
    monkeypatch.setattr(figures, "DPI", 30)
    monkeypatch.setattr(figures, "FEATURES_SHOWN", 2)


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip flushes to the disk: they matter when the power fails, not when a process is killed."""
    monkeypatch.setattr("os.fsync", lambda _descriptor: None)
