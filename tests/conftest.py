"""What many tests share: small models, a bundle, a Python without PyTorch."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from edgevae import Model, load
from edgevae.export import FORMATS, Source, export_bundle
from edgevae.train import VAE, Dataset, ModelConfig, load_dataset

REPOSITORY = Path(__file__).parent.parent
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # tests import ONNX Runtime before our runtime does


def pytest_runtest_setup() -> None:
    """Begin each test with the same random numbers, whichever ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _operators_are_read_once() -> Iterator[None]:
    """PyTorch reads the source of its 500 ONNX operators anew for each graph, for a second; here it does so once."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="session")
def vae() -> VAE:
    """An untrained model of the digits' shape, its weights spread wide enough that every layer shows."""
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
def bundle(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of `vae`, exported in all formats."""
    out = tmp_path_factory.mktemp("models") / "small"
    export_bundle(source, out, FORMATS)
    return out


@pytest.fixture(scope="session")
def model(bundle: Path) -> Model:
    return load(bundle, provider="cpu")


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with `edgevae[cpu]` installed, and so without PyTorch.

    `make test` has made one and names it in EDGEVAE_BARE_PYTHON; without that one is made here.
    """
    if named := os.environ.get("EDGEVAE_BARE_PYTHON"):
        return Path(named)
    folder = tmp_path_factory.mktemp("bare") / "venv"
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", f"{REPOSITORY}[cpu]"], check=True)
    return python
