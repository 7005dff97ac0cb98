"""The house: who may import whom, and what must not stand in it."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
MAY_IMPORT = {"train": {"train"}, "export": {"train", "export", "runtime"}, "runtime": set()}
RUNTIME_PACKAGES = {"numpy", "onnxruntime", "msgspec"}
OPTIONAL_PACKAGES = {"runtime/_cli/": {"click"}, "runtime/images.py": {"PIL"}, "runtime/_trust.py": {"cryptography"}}


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Each imported top-level package, with its level: 0 for absolute imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0], node.level


def modules(package: str) -> list[Path]:
    return sorted((REPOSITORY / package).rglob("*.py"))


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_dependencies_point_one_way(package: str) -> None:
    for path in modules(package):
        ours = {name for name, level in imports(path) if level == 0} & set(MAY_IMPORT)
        assert ours <= MAY_IMPORT[package], path


def test_the_runtime_imports_only_what_it_may() -> None:
    import sys

    for path in modules("runtime"):
        name = path.relative_to(REPOSITORY).as_posix()
        more = [packages for place, packages in OPTIONAL_PACKAGES.items() if name.startswith(place)]
        allowed = RUNTIME_PACKAGES.union(*more)
        others = {name for name, level in imports(path) if level == 0} - set(sys.stdlib_module_names)
        assert others <= allowed, path


def test_files_can_be_read_in_one_sitting() -> None:
    for package in MAY_IMPORT:
        for path in modules(package):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 250, path


def test_no_path_of_a_machine_stands_in_the_project() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, check=True, capture_output=True).stdout.decode()
    here = re.compile(rb"(?:/home/|/root/|/Users/)\w|" + re.escape(bytes(REPOSITORY) + b"/"))
    for name in filter(None, listed.split("\0")):
        path = REPOSITORY / name
        if path.is_file() and name != "tests/test_architecture.py":
            assert not here.search(path.read_bytes()), name


def test_each_module_has_a_test_file() -> None:
    # Private helpers are tested through the module that owns them; these own a contract.
    contracts = {
        "train": ["binarize", "cli", "datasets", "idx", "latents", "likelihoods", "run", "trainer", "vae"],
        "export": ["bundle_writer", "cli", "lint", "pictures", "reference", "rewrites", "state_dict", "torch_formats"],
        "runtime": [
            *(
                "bundle",
                "cli",
                "cpus",
                "elbo",
                "estimation",
                "exploration",
                "files",
                "graphs",
                "images",
                "inputs",
                "latents",
                "model",
            ),
            *("nats", "noise", "predictive", "providers", "streaming", "verification"),
        ],
    }
    for package, names in contracts.items():
        for name in names:
            assert (REPOSITORY / "tests" / package / f"test_{name}.py").is_file(), name
