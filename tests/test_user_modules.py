"""A directory that holds modules of the user's own, with the names of our folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
NETWORKS = """
import torch
from torch import nn
from edgevae.train import AbstractEncoder, Decoder
from my_layers import Hidden

class TanhEncoder(AbstractEncoder):
    def make_features(self):
        self.layer = Hidden(self.data_dim, self.hidden_dim)
    def features(self, x, labels):
        return torch.tanh(self.layer(x))
"""
OPTIONS = ["--dataset", "digits", "--z-dim", "3", "--hidden-dim", "8", "--epochs", "1", "--no-report"]
OWN = ["--architecture", "my_nets:TanhEncoder,Decoder"]
LOADED = """
import json, runpy, sys
sys.argv = ["train", "--help"]
try:
    runpy.run_module("train", run_name="__main__")
except SystemExit:
    pass
ours = [name for name in sys.modules if name.partition(".")[0] in {"train", "export", "runtime"}]
files = [getattr(module, "__file__", None) for name, module in sys.modules.items() if name.startswith("edgevae")]
print(json.dumps([ours, len(files), len(set(files))]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our folders' names, each an error at import, and networks with a helper module."""
    folder = tmp_path_factory.mktemp("user")
    for name in ("train.py", "export.py", "models.py", "runtime/__init__.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"raise RuntimeError('{name} is the user's')", encoding="utf-8")
    (folder / "my_nets.py").write_text(NETWORKS, encoding="utf-8")
    (folder / "my_layers.py").write_text("from torch.nn import Linear as Hidden", encoding="utf-8")
    return folder


def called(folder: Path, *command: str) -> str:
    """What a command prints that is called in the folder, without PYTHONPATH."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def installed(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def test_own_networks_are_found_in_the_working_directory_by_every_command(folder: Path) -> None:
    said = called(folder, installed("vae-train"), *OPTIONS, *OWN, "--out", "run")
    assert "my_nets:TanhEncoder,Decoder VAE 64-8-3" in said
    called(folder, sys.executable, "-m", "edgevae.train", *OPTIONS, *OWN, "--dry-run", "--out", "other")
    called(folder, installed("vae-export"), "run", "--out", "bundle")
    assert (folder / "bundle" / "manifest.json").is_file()
    program = "from pathlib import Path; from edgevae.train import load_run; print(load_run(Path('run')).vae.encoder)"
    assert "TanhEncoder" in called(folder, sys.executable, "-c", program)


def test_in_a_checkout_nothing_is_loaded_twice() -> None:
    names, count, different = json.loads(called(REPOSITORY, sys.executable, "-c", LOADED).splitlines()[-1])
    assert set(names) <= {"train"}, "the lazy package, which Python runs before it hands over"
    assert count == different > 20
