"""The three commands and packages wherever they are used: any encoding, pipes, folders with a user's own modules."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import edgevae
from tests.conftest import REPOSITORY

DIGITS = REPOSITORY / "models" / "digits-mlp"
SLOW = pytest.mark.slow
COMMANDS = {"vae-run": "edgevae", "vae-train": "edgevae.train", "vae-export": "edgevae.export"}
NETWORKS = """
import torch
from edgevae.train import AbstractDecoder, AbstractEncoder
from my_layers import Hidden

class Encoder(AbstractEncoder):
    def make_features(self):
        self.layer = Hidden(self.data_dim, self.hidden_dim)

    def features(self, x, labels):
        return torch.tanh(self.layer(x))

class Decoder(AbstractDecoder):
    def make_outputs(self, num_outputs):
        self.layer = Hidden(self.code_dim, num_outputs * self.data_dim)

    def outputs(self, code):
        return self.layer(code)
"""
IMPORTS = """
import edgevae, edgevae.train, edgevae.export
edgevae.load, edgevae.train.fit, edgevae.export.export_bundle
"""
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


def call(folder: Path, *command: object, encoding: str = "utf-8", **streams: int) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a folder as a user would: as its script or with `python -m`, and without PYTHONPATH."""
    name, *arguments = map(str, command)
    start = [Path(sys.executable).with_name(name)] if name in COMMANDS else [sys.executable, "-m", name]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PYTHONIOENCODING"] = encoding
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.run([*start, *arguments], cwd=folder, env=environment, check=False, **streams)  # type: ignore[call-overload]  # streams by name


def output(folder: Path, *command: object) -> str:
    """What a command that succeeds prints."""
    done = call(folder, *command)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: networks of their own, and modules of the names of our folders, which must not be imported."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "runtime").mkdir()
    for file in ("train.py", "export.py", "models.py", "runtime/__init__.py"):
        (folder / file).write_text("raise RuntimeError(f'{__file__} was imported')", encoding="utf-8")
    (folder / "my_nets.py").write_text(NETWORKS, encoding="utf-8")
    (folder / "my_layers.py").write_text("from torch.nn import Linear as Hidden", encoding="utf-8")
    (folder / "test_of_the_user.py").write_text(f"{IMPORTS}\ndef test_it():\n    pass\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> subprocess.CompletedProcess[bytes]:
    """A training into the folder `run→`, whose output can't hold the arrow."""
    options = ["--dataset", "digits", "--epochs", 1, "--hidden-dim", 8, "--z-dim", 2, "--no-report", "--out", "run→"]
    return call(folder, "edgevae.train", *options, encoding="cp1252")


def test_training_writes_what_the_encoding_of_its_output_has(trained: subprocess.CompletedProcess[bytes]) -> None:
    assert trained.returncode == 0, trained.stderr
    assert b"Export it with: vae-export run->" in trained.stdout


def test_export_writes_what_the_encoding_of_its_output_has(
    folder: Path, trained: subprocess.CompletedProcess[bytes]
) -> None:
    assert trained.returncode == 0, trained.stderr
    done = call(folder, "vae-export", "run→", "--graphs", "encoder", "--out", "bundle→é", encoding="ascii")
    assert done.returncode == 0, done.stderr
    assert (folder / "bundle→é" / "manifest.json").is_file()
    text = done.stdout.decode("ascii")
    assert "run->: verified with" in text
    assert "Wrote bundle->\\xe9" in text


def test_the_list_of_runs_is_written_with_what_the_encoding_of_its_output_has(
    folder: Path, trained: subprocess.CompletedProcess[bytes]
) -> None:
    assert trained.returncode == 0, trained.stderr
    done = call(folder, "edgevae.train.runs", "list", ".", encoding="cp1252")
    assert done.returncode == 0, done.stderr
    assert b"run->" in done.stdout


@pytest.mark.parametrize("encoding", ["cp1252", "ascii:strict", "utf-8"])
def test_vae_run_writes_what_the_encoding_of_its_output_has(tmp_path: Path, encoding: str) -> None:
    name = encoding.partition(":")[0]
    for command in (["info"], ["verify"], ["bench", "--seconds", 0.01, "--batch-size", 1], ["--help"]):
        bundle = [DIGITS] if command != ["--help"] else []
        done = call(tmp_path, "vae-run", command[0], *bundle, *command[1:], encoding=encoding)
        assert done.returncode == 0, done.stderr
        text = done.stdout.decode(name)
        assert "\\u" not in text
        if command == ["info"]:
            assert f"x {'→' if name == 'utf-8' else '->'} z_loc, z_scale" in text
    failed = call(tmp_path, "vae-run", "info", "no→bundle", encoding=encoding)
    assert failed.returncode == 2
    assert ("no→bundle" if name == "utf-8" else "no->bundle") in failed.stderr.decode(name)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-16"])
def test_json_is_the_same_in_every_encoding(tmp_path: Path, encoding: str) -> None:
    done = call(tmp_path, "vae-run", "generate", DIGITS, "--out", "é😀.npy", "--json", encoding=encoding)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.decode(encoding))["out"] == "é😀.npy"
    done = call(tmp_path, "vae-run", "info", DIGITS, "--json", encoding=encoding)
    assert json.loads(done.stdout.decode(encoding)) == json.loads((DIGITS / "manifest.json").read_text("utf-8"))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have file names in Unicode only")
def test_a_path_that_is_not_text_is_written_with_escapes(tmp_path: Path) -> None:
    done = call(tmp_path, "vae-run", "generate", DIGITS, "--out", os.fsdecode(b"\xff.npy"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(rb"\udcff.npy: 64 samples")


# What is under all three is the same class.
@pytest.mark.parametrize("name", ["vae-run", *(pytest.param(name, marks=SLOW) for name in ("vae-train", "vae-export"))])
def test_a_reader_that_leaves_early_is_no_error(folder: Path, name: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = call(folder, name, "--help", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_work_is_done_when_the_reader_has_left(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    for option in ([], ["--json"]):
        done = call(tmp_path, "vae-run", "generate", DIGITS, "--out", "samples.npy", *option, stdout=writing)
        assert (done.returncode, done.stderr) == (0, b"")
        (tmp_path / "samples.npy").unlink()
    os.close(writing)


@pytest.mark.parametrize("name", [*COMMANDS, "edgevae"])
def test_each_command_starts_beside_a_users_own_modules(folder: Path, name: str) -> None:
    assert "--help" in output(folder, name, "--help")


def test_the_packages_are_imported_beside_a_users_own_modules(folder: Path) -> None:
    """`python -c` has the working directory first on its path, as IPython and Jupyter have."""
    subprocess.run([sys.executable, "-c", IMPORTS], cwd=folder, check=True)
    assert "1 passed" in output(folder, "pytest", "-q")


@pytest.mark.parametrize(
    ("names", "architecture"),
    [
        pytest.param(list(COMMANDS), "my_nets:Encoder,Decoder", marks=SLOW),
        pytest.param(list(COMMANDS), "mlp", marks=SLOW),
        pytest.param(list(COMMANDS.values()), "my_nets:Encoder,Decoder", marks=SLOW),
        pytest.param(list(COMMANDS.values()), "mlp", marks=SLOW),
    ],
)
def test_a_model_is_trained_exported_and_run_beside_a_users_own_modules(
    folder: Path, names: list[str], architecture: str
) -> None:
    run, train, export = names
    options = ["--dataset", "digits", "--epochs", "1", "--z-dim", "3", "--hidden-dim", "8", "--no-report"]
    said = output(folder, train, *options, "--architecture", architecture, "--out", "run", "--force")
    assert f"{architecture} VAE 64-8-3" in said
    output(folder, export, "run", "--out", "bundle", "--force")
    for command in (["info", "bundle"], ["verify", "bundle"], ["generate", "bundle", "--out", "samples.png"]):
        output(folder, run, *command)
    assert (folder / "samples.png").read_bytes().startswith(b"\x89PNG")
    program = "from pathlib import Path; from edgevae.train import load_run; print(load_run(Path('run')).vae.encoder)"
    subprocess.run([sys.executable, "-c", program], cwd=folder, check=True)


@pytest.mark.parametrize("package", ["train", "export", "runtime"])
def test_in_a_checkout_a_folder_runs_and_loads_nothing_twice(package: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED_TWICE, package], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    *helped, last = done.stdout.splitlines()
    assert any("--help" in line for line in helped)
    # Python imports the folder's own lazy __init__ before it runs __main__, which hands over to edgevae.
    handed_over = {f"{package}/__init__.py": [package, f"edgevae.{package}"]}
    assert json.loads(last) == ({} if package == "runtime" else handed_over)


@pytest.mark.parametrize("name", ["vae_runtime", "runtime"])
def test_the_runtime_works_as_a_copy_of_any_name_where_edgevae_is_not_installed(tmp_path: Path, name: str) -> None:
    shutil.copytree(REPOSITORY / "runtime", tmp_path / "app" / name, ignore=shutil.ignore_patterns("__pycache__"))
    packages = tmp_path / "packages"
    packages.mkdir()
    for needed in ("click", "msgspec", "numpy", "onnxruntime", "PIL"):
        installed = Path(str(importlib.import_module(needed).__file__)).parent
        libraries = {"PIL": "pillow.libs"}.get(needed, f"{needed}.libs")
        for entry in (installed, installed.with_name(libraries)):
            if entry.is_dir():
                (packages / entry.name).symlink_to(entry, target_is_directory=True)

    def run(*arguments: object) -> str:
        # -S leaves out site-packages, and so the installed edgevae.
        command = [sys.executable, "-S", "-m", name, *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(packages)}
        done = subprocess.run(command, cwd=tmp_path / "app", env=environment, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    assert run("--version") == f"vae-run, version {edgevae.__version__}\n"
    assert "digits-mlp" in run("info", DIGITS)
    run("generate", DIGITS, "--out", "samples.png")
    assert (tmp_path / "app" / "samples.png").read_bytes().startswith(b"\x89PNG")
