"""The commands and packages beside a user's own files called `train.py`, `export.py`, `models.py` and `runtime/`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
USERS_FILES = ("train.py", "export.py", "models.py", "runtime/__init__.py")
NETWORKS = """
import torch
from torch import nn
from edgevae.train import AbstractDecoder, AbstractEncoder

class Encoder(AbstractEncoder):
    def make_features(self):
        self.layer = nn.Linear(self.data_dim, self.hidden_dim)

    def features(self, x, labels):
        return torch.tanh(self.layer(x))

class Decoder(AbstractDecoder):
    def make_outputs(self, num_outputs):
        self.layer = nn.Linear(self.code_dim, num_outputs * self.data_dim)

    def outputs(self, code):
        return self.layer(code)
"""
IMPORTS = """
import edgevae, edgevae.train, edgevae.export
edgevae.load, edgevae.train.fit, edgevae.export.export_bundle
"""
SHORT = ("--dataset", "digits", "--epochs", "1", "--no-report")
# Runs a package's __main__, then prints which of our files are loaded under several names.
LOADED_TWICE = """
import json, pathlib, runpy, sys
root = pathlib.Path.cwd()
package, sys.argv = sys.argv[1], [sys.argv[1], "--help"]
try:
    runpy.run_module(package, run_name="__main__", alter_sys=True)
except SystemExit as ended:
    assert not ended.code, ended.code
names = {}
for name, module in list(sys.modules.items()):
    path = pathlib.Path(getattr(module, "__file__", None) or "/").resolve()
    for folder in ("runtime", "train", "export"):
        if path.is_relative_to(root / folder):
            names.setdefault(path.relative_to(root).as_posix(), []).append(name)
print(json.dumps({path: found for path, found in names.items() if len(found) > 1}))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's working directory; nothing may import these files."""
    for name in USERS_FILES:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"raise RuntimeError('{name} of the user was imported')\n", encoding="utf-8")
    (tmp_path / "my_nets.py").write_text(NETWORKS, encoding="utf-8")
    return tmp_path


def run(folder: Path, *command: str) -> str:
    """Run a command as a user would: without PYTHONPATH."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def installed(name: str) -> str:
    """Path of an installed command."""
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    assert found, f"{name} is not installed beside this Python"
    return found


@pytest.mark.parametrize("command", ["vae-train", "vae-export", "vae-run"])
def test_the_commands_start_beside_a_users_files(command: str, folder: Path) -> None:
    assert "--help" in run(folder, installed(command), "--help")


@pytest.mark.parametrize("package", ["edgevae", "edgevae.train", "edgevae.export"])
def test_python_m_starts_beside_a_users_files(package: str, folder: Path) -> None:
    assert "--help" in run(folder, sys.executable, "-m", package, "--help")


@pytest.mark.parametrize("way", [["-c", IMPORTS], ["-m", "pytest", "-q"]], ids=["python -c", "pytest"])
def test_the_packages_are_imported_beside_a_users_files(way: list[str], folder: Path) -> None:
    """`python -c` has the working directory first on its path, as IPython and Jupyter have."""
    (folder / "test_of_the_user.py").write_text(f"{IMPORTS}\ndef test_it():\n    pass\n", encoding="utf-8")
    run(folder, sys.executable, *way)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["mlp", "my_nets:Encoder,Decoder"])
@pytest.mark.parametrize("way", ["installed commands", "python -m"])
def test_a_model_is_trained_exported_and_run_beside_a_users_files(way: str, architecture: str, folder: Path) -> None:
    def command(name: str, package: str) -> list[str]:
        return [installed(name)] if way == "installed commands" else [sys.executable, "-m", package]

    run(folder, *command("vae-train", "edgevae.train"), *SHORT, "--architecture", architecture, "--out", "runs/a")
    run(folder, *command("vae-export", "edgevae.export"), "runs/a", "--out", "bundle")
    run(folder, *command("vae-run", "edgevae"), "verify", "bundle")


@pytest.mark.parametrize("package", ["train", "export", "runtime"])
def test_in_a_checkout_a_folder_runs_and_loads_nothing_twice(package: str) -> None:
    *helped, last = run(REPOSITORY, sys.executable, "-c", LOADED_TWICE, package).splitlines()
    assert any("--help" in line for line in helped)
    # Python imports the folder's own lazy __init__ before it runs __main__, which hands over to edgevae.
    handed_over = {f"{package}/__init__.py": [package, f"edgevae.{package}"]}
    assert json.loads(last) == ({} if package == "runtime" else handed_over)
