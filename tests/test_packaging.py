"""What is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PLACES = {"runtime": "edgevae", "train": "edgevae/train", "export": "edgevae/export"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy: setuptools puts what an older build left in the checkout into the wheel
    for package in ("train", "export", "runtime"):
        shutil.copytree(REPOSITORY / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(folder),
        str(source),
    ]
    subprocess.run(command, check=True)
    return zipfile.ZipFile(next(folder.glob("edgevae-*-py3-none-any.whl")))


def test_the_wheel_holds_the_package_edgevae_typed_and_nothing_beside_it(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    top = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert top == {"edgevae"}
    modules = {
        f"{installed}/{path.relative_to(REPOSITORY / folder).as_posix()}"
        for folder, installed in PLACES.items()
        for path in (REPOSITORY / folder).rglob("*.py")
    }
    assert modules == {name for name in names if name.endswith(".py")}
    assert {f"{installed}/py.typed" for installed in PLACES.values()} <= set(names)
    assert "edgevae/train/report/report.html.jinja" in names
    assert any(name.endswith("LICENSE") for name in names)


def test_the_base_needs_nothing_heavy_and_onnx_runtime_comes_in_extras(wheel: zipfile.ZipFile) -> None:
    metadata = next(name for name in wheel.namelist() if name.endswith("METADATA"))
    fields = Parser().parsestr(wheel.read(metadata).decode())
    base = {line.split(">")[0] for line in fields.get_all("Requires-Dist", []) if "extra ==" not in line}
    assert base == {"click", "msgspec", "numpy", "pillow"}
    extras = {"train", "tensorboard", "mlflow", "export", "cpu", "gpu", "bench", "examples", "fuzz", "signing", "dev"}
    assert set(fields.get_all("Provides-Extra", [])) == extras


def test_the_commands_are_installed(wheel: zipfile.ZipFile) -> None:
    entry_points = wheel.read(next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))).decode()
    assert {line.split(" ")[0] for line in entry_points.splitlines() if "=" in line} == {
        "vae-train",
        "vae-export",
        "vae-run",
    }
