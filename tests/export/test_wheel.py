"""Wheels: a model as a package of its own, and the ways to embed it from an environment that has nothing."""

from __future__ import annotations

import base64
import hashlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import msgspec
import numpy as np
import pytest

import edgevae
from edgevae import MANIFEST_FILE, BundleError, Manifest, load
from edgevae.export import ExportError, Source, build_wheel, export_bundle
from edgevae.export.wheel import check_license, check_version, import_name

USE = """
import importlib, importlib.util, json, sys
import numpy as np
assert importlib.util.find_spec("torch") is None
package = importlib.import_module(sys.argv[1])
model = package.load(*sys.argv[2:])
images = model.generate(16, seed=0)
np.save("images.npy", model.reconstruct(images, seed=1))
assert model.verify().passed
loaded = {name.partition(".")[0] for name in sys.modules}
print(json.dumps(sorted(loaded - set(sys.stdlib_module_names))))
"""


@pytest.fixture(scope="module")
def released(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a version and a license, and programs for PyTorch that a wheel has no use for."""
    out = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("released") / "my-model"))
    manifest = Manifest.decode((out / MANIFEST_FILE).read_bytes())
    named = msgspec.structs.replace(manifest, name="my-model", version="1.2", license="MIT")
    (out / MANIFEST_FILE).write_bytes(named.encode())
    return out


@pytest.fixture(scope="module")
def wheel(released: Path) -> Path:
    return build_wheel(released, released.parent)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that was empty, and into which the wheel alone was installed."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", str(wheel)], check=True)
    return python


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        return Parser().parsestr(archive.read("my_model-1.2.dist-info/METADATA").decode())


def use(python: Path, folder: Path, *arguments: str) -> set[str]:
    """Use a model in a process of its own; return the packages that it loaded."""
    done = subprocess.run([python, "-c", USE, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return set(json.loads(done.stdout))


@pytest.mark.slow
def test_an_empty_environment_needs_nothing_but_the_wheel(installed: Path, released: Path, tmp_path: Path) -> None:
    loaded = use(installed, tmp_path, "my_model")
    assert loaded >= {"my_model", "numpy", "onnxruntime", "msgspec"}
    assert not loaded & {"runtime", "train", "export", "edgevae", "click", "PIL"}
    model = load(released, provider="cpu")
    expected = model.reconstruct(model.generate(16, seed=0), seed=1)
    np.testing.assert_allclose(np.load(tmp_path / "images.npy"), expected, atol=1e-6)


@pytest.mark.slow
def test_the_folder_of_the_runtime_works_under_another_name_where_edgevae_is_not_installed(
    installed: Path, released: Path, tmp_path: Path
) -> None:
    shutil.copytree(Path(edgevae.__file__).parent, tmp_path / "app" / "vendored_vae")
    (tmp_path / "app" / "__init__.py").touch()
    loaded = use(installed, tmp_path, "app.vendored_vae", str(released))
    assert "app" in loaded
    assert not loaded & {"edgevae", "my_model"}


def test_a_wheel_is_the_same_byte_for_byte(released: Path, wheel: Path, tmp_path: Path) -> None:
    shutil.copytree(released, tmp_path / "elsewhere" / "my-model")
    for path in (tmp_path / "elsewhere" / "my-model").iterdir():
        path.chmod(0o600)
        os.utime(path, (1, 1))
    again = build_wheel(tmp_path / "elsewhere" / "my-model", tmp_path)
    assert again.name == wheel.name == "my_model-1.2-py3-none-any.whl"
    assert again.read_bytes() == wheel.read_bytes()


def test_the_record_lists_every_file_with_its_hash(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        record = archive.read("my_model-1.2.dist-info/RECORD").decode().splitlines()
        for name, digest, size in (line.split(",") for line in record):
            names.remove(name)
            if name.endswith("/RECORD"):
                continue
            content = archive.read(name)
            expected = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            assert (digest, int(size)) == (f"sha256={expected}", len(content)), name
    assert names == set()


def test_all_files_are_under_the_packages_own_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names} == {"my_model", "my_model-1.2.dist-info"}
    assert "my_model/bundle/encoder.onnx" in names
    assert not [name for name in names if name.endswith((".ts", ".pt2", ".pyc"))]


def test_version_license_and_needs_are_those_of_the_manifest_and_of_the_runtime(wheel: Path) -> None:
    fields = metadata(wheel)
    assert (fields["Name"], fields["Version"]) == ("my_model", "1.2")
    assert fields["License-Expression"] == "MIT AND Apache-2.0"
    needs = {line.split(">")[0] for line in fields.get_all("Requires-Dist", [])}
    assert needs == {"msgspec", "numpy", "onnxruntime"}
    assert fields["Requires-Python"] == ">=3.10"
    with zipfile.ZipFile(wheel) as archive:
        assert b"Apache License" in archive.read("my_model-1.2.dist-info/licenses/LICENSE")


def test_without_a_license_of_the_model_none_is_stated(bundle: Path, tmp_path: Path) -> None:
    path = build_wheel(bundle, tmp_path)
    with zipfile.ZipFile(path) as archive:
        assert b"License-Expression" not in archive.read("small-1.0.0.dist-info/METADATA")


def test_loading_takes_what_the_runtime_takes(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import my_model  # type: ignore[import-not-found]  # made by this test

    _, *expected = inspect.signature(load).parameters.values()
    found = inspect.signature(my_model.load).parameters.values()
    assert [(part.name, part.kind, part.default) for part in found] == [
        (part.name, part.kind, part.default) for part in expected
    ]
    with pytest.raises(my_model.runtime.InputError, match="threads must be from 1"):
        my_model.load(threads=0)
    assert my_model.__version__ == "1.2"
    monkeypatch.delitem(sys.modules, "my_model")


@pytest.mark.parametrize(
    ("name", "obstacle"),
    [
        ("json", "is a module of Python's standard library"),
        ("class", "is not a valid name for a Python package"),
        ("3d-vae", "is not a valid name for a Python package"),
        ("größe", "is not a valid name for a Python package"),
        ("numpy", "is the import name of the installed package numpy"),
        ("edgevae", "is the import name of the installed package edgevae"),
    ],
)
def test_names_that_would_clash_are_refused(name: str, obstacle: str) -> None:
    with pytest.raises(ExportError, match=f"{obstacle}; choose another --out"):
        import_name(name)


def test_a_bundle_without_onnx_or_with_a_changed_file_makes_no_wheel(
    source: Source, released: Path, tmp_path: Path
) -> None:
    export_bundle(source, tmp_path / "small", ["torchscript"])
    with pytest.raises(ExportError, match="has no ONNX graphs, which a wheel needs"):
        build_wheel(tmp_path / "small", tmp_path)
    shutil.copytree(released, tmp_path / "changed")
    (tmp_path / "changed" / "decoder.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match="was changed after export"):
        build_wheel(tmp_path / "changed", tmp_path)
    assert list(tmp_path.glob("*.whl")) == []


def test_versions_and_licenses_are_checked_and_spelled_as_the_standards_do() -> None:
    assert check_version("v1.0.0-rc1") == "1.0.0rc1"
    assert check_license("apache-2.0 or mit") == "Apache-2.0 OR MIT"
    assert check_license("LicenseRef-Ours") == "LicenseRef-Ours"
    with pytest.raises(ExportError, match=r"version must be like 1\.0\.0, got 'new'"):
        check_version("new")
    with pytest.raises(ExportError, match=r"SPDX expression like Apache-2\.0 .*, got 'free'"):
        check_license("free")
