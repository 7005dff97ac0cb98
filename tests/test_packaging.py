"""What is installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).parent.parent
FOLDERS = {"runtime": "edgevae", "train": "edgevae.train", "export": "edgevae.export"}
PYPROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


def installed_name(path: Path) -> str:
    """Where a file of the checkout lies in the wheel."""
    folder, *rest = path.relative_to(REPOSITORY).parts
    return "/".join([*FOLDERS[folder].split("."), *rest])


def source_files() -> list[Path]:
    """All files of the three packages, templates and other data among them."""
    found = [path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*")]
    return [path for path in found if path.is_file() and "__pycache__" not in path.parts]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel that `make wheel` builds in a checkout where an older version was built before."""
    source = tmp_path_factory.mktemp("wheel") / "source"
    for folder in FOLDERS:
        shutil.copytree(REPOSITORY / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "Makefile"):
        shutil.copy(REPOSITORY / name, source)
    for left in ("build/lib/train/old.py", "build/lib/edgevae/old.py", "build/lib/edgevae/old/old.py"):
        (source / left).parent.mkdir(parents=True, exist_ok=True)
        (source / left).write_text("raise ImportError\n", encoding="utf-8")
    subprocess.run(["make", "wheel", f"PYTHON={sys.executable}"], cwd=source, check=True)
    return zipfile.ZipFile(next(source.glob("dist/edgevae-*-py3-none-any.whl")))


def test_the_wheel_holds_the_package_edgevae_and_nothing_beside_it(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == {installed_name(path) for path in source_files()}
    assert {name.partition("/")[0] for name in names} == {"edgevae"}


def test_all_three_packages_are_typed_and_the_license_is_included(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert {f"{package.replace('.', '/')}/py.typed" for package in FOLDERS.values()} <= set(names)
    assert any(name.endswith("LICENSE") for name in names)


def test_the_packages_in_pyproject_are_those_of_the_tree() -> None:
    listed = PYPROJECT["tool"]["setuptools"]["packages"]
    found = {installed_name(path.parent).replace("/", ".") for path in source_files() if path.name == "__init__.py"}
    assert sorted(listed) == listed
    assert set(listed) == found


def test_the_base_needs_nothing_heavy_and_onnx_runtime_comes_in_extras(wheel: zipfile.ZipFile) -> None:
    metadata = next(name for name in wheel.namelist() if name.endswith("METADATA"))
    fields = Parser().parsestr(wheel.read(metadata).decode())
    base = {line.split(">")[0] for line in fields.get_all("Requires-Dist", []) if "extra ==" not in line}
    assert base == {"click", "msgspec", "numpy", "pillow"}
    extras = {"train", "tensorboard", "mlflow", "export", "cpu", "gpu", "bench", "examples", "fuzz", "signing", "dev"}
    assert set(fields.get_all("Provides-Extra", [])) == extras
    links = {link.partition(",")[0] for link in fields.get_all("Project-URL", [])}
    assert {"Repository", "Documentation", "Changelog", "Issues"} <= links


def test_the_commands_are_installed(wheel: zipfile.ZipFile) -> None:
    entry_points = wheel.read(next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))).decode()
    assert {line.split(" ")[0] for line in entry_points.splitlines() if "=" in line} == {
        "vae-train",
        "vae-export",
        "vae-run",
    }
