"""Who may import whom, and what names and paths the project may hold."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
FOLDERS = {"edgevae": "runtime", "edgevae.train": "train", "edgevae.export": "export"}
MAY_IMPORT = {"runtime": set(), "train": {"edgevae"}, "export": {"edgevae", "edgevae.train"}}
RUNTIME_PACKAGES = {"numpy", "onnxruntime", "msgspec"}
OPTIONAL_PACKAGES = {"runtime/cli/": {"click"}, "runtime/images.py": {"PIL"}, "runtime/bundle.py": {"cryptography"}}


def imports(path: Path) -> Iterator[str]:
    """Each module that is imported by its absolute name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""


def package_of(module: str) -> str:
    """Which of our packages a module belongs to."""
    return next((name for name in sorted(FOLDERS, reverse=True) if f"{module}.".startswith(f"{name}.")), "")


def modules(package: str) -> list[Path]:
    return sorted((REPOSITORY / package).rglob("*.py"))


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_dependencies_point_one_way(folder: str) -> None:
    for path in modules(folder):
        ours = {package for module in imports(path) if (package := package_of(module))}
        if path.name not in {"__main__.py", "runs.py"}:  # programs, which hand over to the installed package
            assert ours <= MAY_IMPORT[folder], path


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_nothing_imports_the_folders_by_their_own_names(folder: str) -> None:
    for path in modules(folder):
        assert not {module.partition(".")[0] for module in imports(path)} & set(MAY_IMPORT), path


def test_the_runtime_imports_only_what_it_may() -> None:
    for path in modules("runtime"):
        name = path.relative_to(REPOSITORY).as_posix()
        more = [packages for place, packages in OPTIONAL_PACKAGES.items() if name.startswith(place)]
        allowed = RUNTIME_PACKAGES.union(*more)
        others = {module.partition(".")[0] for module in imports(path)} - set(sys.stdlib_module_names)
        assert others <= allowed, path


@pytest.mark.parametrize("package", ["edgevae.train", "edgevae.export"])
def test_no_module_hides_a_public_name_of_its_package(package: str) -> None:
    """These packages import their names when one is asked for: a module of that name would be found instead."""
    names = set(importlib.import_module(package).__all__)
    modules = {path.stem for path in (REPOSITORY / FOLDERS[package]).iterdir()}
    assert names & modules == set()


def test_no_path_of_a_machine_stands_in_the_project() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, check=True, capture_output=True).stdout.decode()
    here = re.compile(rb"(?:/home/|/root/|/Users/)\w|" + re.escape(bytes(REPOSITORY) + b"/"))
    for name in filter(None, listed.split("\0")):
        path = REPOSITORY / name
        if path.is_file() and name != "tests/test_architecture.py":
            assert not here.search(path.read_bytes()), name
