"""The three commands wherever they are called: with any encoding, in pipes, in folders with a user's own modules."""

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
COMMANDS = {"vae-run": "edgevae", "vae-train": "edgevae.train", "vae-export": "edgevae.export"}


def call(
    folder: Path, *command: object, encoding: str = "utf-8", **variables: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a folder, as its script or with `python -m`; its output goes to a pipe."""
    name, *arguments = map(str, command)
    start = [sys.executable, "-m", name] if name in COMMANDS.values() else [Path(sys.executable).with_name(name)]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, **variables}
    return subprocess.run([*start, *arguments], cwd=folder, env=environment, capture_output=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder, with modules of the names of our folders that must not be imported."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "runtime").mkdir()
    for file in ("train.py", "export.py", "models.py", "runtime/__init__.py"):
        (folder / file).write_text("raise RuntimeError(f'{__file__} was imported')")
    return folder


@pytest.fixture(scope="module")
def trained(folder: Path) -> subprocess.CompletedProcess[bytes]:
    """A training into the folder `run→`, whose output can't hold the arrow."""
    options = ["--dataset", "digits", "--epochs", 1, "--hidden-dim", 8, "--z-dim", 2, "--out", "run→"]
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


@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_that_leaves_early_is_no_error(folder: Path, name: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [str(Path(sys.executable).with_name(name)), "--help"]
    done = subprocess.run(command, cwd=folder, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_work_is_done_when_the_reader_has_left(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [str(Path(sys.executable).with_name("vae-run")), "generate", str(DIGITS), "--out", "samples.npy"]
    for arguments in (command, [*command, "--json"]):
        done = subprocess.run(arguments, cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        (tmp_path / "samples.npy").unlink()
    os.close(writing)


@pytest.mark.parametrize("name", ["vae-run", "edgevae"])
def test_vae_run_works_in_a_folder_with_a_users_own_modules(folder: Path, name: str) -> None:
    for arguments in (["info"], ["verify"], ["generate", "--out", "samples.png"]):
        done = call(folder, name, arguments[0], DIGITS, *arguments[1:])
        assert done.returncode == 0, done.stderr
    assert (folder / "samples.png").read_bytes().startswith(b"\x89PNG")


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
