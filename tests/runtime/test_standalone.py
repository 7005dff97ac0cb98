"""The runtime where it will live: without PyTorch, under other names, in other people's processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import edgevae
from tests.conftest import REPOSITORY

ALLOWED = {"numpy", "onnxruntime", "msgspec"}
# msgspec looks for typing_extensions and goes on without; cython_runtime is inside NumPy's compiled modules.
PARTS_OF_THEM = {"typing_extensions", "cython_runtime"}
USE = """
import importlib, json, sys
edgevae = importlib.import_module(sys.argv[2])
model = edgevae.load(sys.argv[1], provider="cpu")
images = model.generate(3, seed=0)
assert model.reconstruct(images, seed=0).shape == images.shape
assert model.verify().passed
"""
LIST_PACKAGES = """
loaded = {name.partition(".")[0] for name in sys.modules}
print(json.dumps(sorted(loaded - set(sys.stdlib_module_names) - {"__main__"})))
"""


def packages_after(program: str, *arguments: object, python: Path | str = sys.executable, cwd: Path) -> set[str]:
    """Run a program in a process of its own; return the third-party packages that it has loaded at its end."""
    command = [python, "-c", "import json, sys\n" + program + LIST_PACKAGES, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_runtime_loads_numpy_and_the_schema_library_only(tmp_path: Path) -> None:
    before = packages_after("", cwd=tmp_path)
    loaded = packages_after("import edgevae", cwd=tmp_path) - before - {"edgevae"}
    assert loaded - PARTS_OF_THEM == {"numpy", "msgspec"}


def test_loading_and_running_a_model_adds_onnx_runtime_only(bundle: Path, tmp_path: Path) -> None:
    before = packages_after("", cwd=tmp_path)
    loaded = packages_after(USE, bundle, "edgevae", cwd=tmp_path) - before - {"edgevae"}
    # What ONNX Runtime itself loads is its own business, as long as it is not PyTorch.
    ort_needs = packages_after("import onnxruntime", cwd=tmp_path)
    assert {name for name in loaded - ort_needs - PARTS_OF_THEM if not name.startswith("_cython_")} <= ALLOWED
    assert not {"torch", "pyro"} & loaded


_START = """
model = edgevae.load(sys.argv[1], provider="cpu")
model.reconstruct(numpy.zeros((1, *model.data_shape), numpy.float32))
"""
_LIST_MODULES = "print(json.dumps(sorted(sys.modules)))"


def test_a_start_loads_nothing_that_only_other_calls_need(bare_python: Path, bundle: Path, tmp_path: Path) -> None:
    def modules_after(program: str) -> set[str]:
        command = [
            str(bare_python),
            "-c",
            f"import json, sys, numpy, onnxruntime\n{program}\n{_LIST_MODULES}",
            str(bundle),
        ]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return set(json.loads(done.stdout))

    added = modules_after("import edgevae\n" + _START) - modules_after("")
    assert "edgevae.session" in added
    assert not added & {"click", "PIL", "cryptography", "numpy.ma", "edgevae.images", "edgevae.doctor", "edgevae.cli"}


# What ONNX Runtime takes for a machine of continuous integration, where it reports nothing anyway, is left out.
def _environment(home: Path, **variables: str) -> dict[str, str]:
    return {"HOME": str(home), "PATH": os.environ["PATH"], **variables}


def test_nothing_is_reported_to_anyone(bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import json, sys\n" + USE, str(bundle), "edgevae"]
    subprocess.run(command, cwd=REPOSITORY, env=_environment(tmp_path), check=True)
    assert not list(tmp_path.rglob("*"))  # where ONNX Runtime keeps its reports until they are sent


def test_onnx_runtimes_telemetry_can_be_turned_on(tmp_path: Path) -> None:
    program = "import os; from edgevae.providers import import_onnxruntime as find; find(); print(os.environ[NAME])"
    command = [sys.executable, "-c", program.replace("NAME", "'ORT_DISABLE_TELEMETRY'")]
    variables = _environment(tmp_path, ORT_DISABLE_TELEMETRY="0", CI="1")  # and yet none from here
    done = subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


def test_the_runtime_works_in_an_environment_without_torch(bare_python: Path, bundle: Path, tmp_path: Path) -> None:
    without = "import importlib.util\nassert importlib.util.find_spec('torch') is None\n"
    packages_after(without + USE, bundle, "edgevae", python=bare_python, cwd=tmp_path)


def test_the_command_works_in_an_environment_without_torch(bare_python: Path, bundle: Path, tmp_path: Path) -> None:
    command = [str(bare_python), "-m", "edgevae", "generate", str(bundle), "--out", "samples.png"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("package", ["train", "export"])
def test_without_torch_training_and_export_say_what_to_install(bare_python: Path, package: str, tmp_path: Path) -> None:
    command = [str(bare_python), "-m", f"edgevae.{package}", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    last = done.stderr.splitlines()[-1]
    assert "training and export need torch, pyro" in last
    assert "pip install 'edgevae[export]'" in last


def test_every_public_name_is_there_and_documented() -> None:
    for name in edgevae.__all__:
        thing = getattr(edgevae, name)
        if callable(thing) and getattr(thing, "__module__", "").startswith("edgevae"):
            assert thing.__doc__, f"{name} has no docstring"


@pytest.mark.parametrize("name", ["edgevae", "edgevae.images"])
def test_nothing_is_printed_on_import(name: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=tmp_path, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")
