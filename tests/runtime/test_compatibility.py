"""What was exported once loads for good; the oldest libraries and the oldest Python do."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgevae import SCHEMA_VERSION, BundleError, Manifest, Precision, load

REPOSITORY = Path(__file__).parents[2]
FIXTURES = sorted((REPOSITORY / "tests" / "fixtures" / "bundles").glob("*/*"))
MODELS = sorted((REPOSITORY / "models").iterdir())
SOURCES = [
    path
    for folder in ("train", "export", "runtime", "examples", "benchmarks")
    for path in sorted((REPOSITORY / folder).rglob("*.py"))
]
OLDEST_PYTHON = os.environ.get("EDGEVAE_OLDEST_PYTHON")
NUMBERS = """
import json, sys
import numpy as np
import edgevae

found = {}
for path in sys.argv[2:]:
    with edgevae.load(path, provider="cpu") as model:
        precisions = ("fp32", *model.manifest.precisions)
    for precision in precisions:
        with edgevae.load(path, provider="cpu", precision=precision) as model:
            report = model.verify()
            assert report.passed, f"{path} {report}"
            y = {"y": 0} if model.num_classes else {}
            key = f"{path} {precision} "
            if "decoder" in model.manifest.graphs and "reconstruct" in model.manifest.graphs:
                x = model.generate(20, 1, **y)
                found |= {key + "generate": x, key + "reconstruct": model.reconstruct(x, seed=2**40, **y)}
                found |= {key + "elbo": model.elbo(x, 3, 2, **y), key + "z": np.asarray(model.encode(x, **y).z_loc)}
np.savez(sys.argv[1], **found)
"""
VERSIONS = """
import importlib.metadata, json, sys
names = ["click", "msgspec", "numpy", "onnxruntime", "pillow"]
print(json.dumps({name: importlib.metadata.version(name) for name in names}))
"""


@pytest.fixture(scope="module")
def oldest_python() -> Path:
    if OLDEST_PYTHON is None:
        pytest.skip("EDGEVAE_OLDEST_PYTHON names no Python with the oldest libraries that are supported")
    return Path(OLDEST_PYTHON)


def run(python: Path, program: str, *arguments: object, cwd: Path) -> str:
    command = [str(python), "-W", "error", "-c", program, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_there_are_bundles_of_this_schema() -> None:
    assert {path.name for path in FIXTURES if path.parent.name == f"v{SCHEMA_VERSION}"} == {
        "decoder",
        "encoder",
        "hierarchical",
        "mixture",
        "mlp",
        "table",
    }
    assert sum(path.stat().st_size for folder in FIXTURES for path in folder.iterdir()) < 400_000


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_bundle_that_was_exported_once_loads_and_verifies_in_each_precision(path: Path) -> None:
    with load(path, provider="cpu") as model:
        precisions: tuple[Precision, ...] = ("fp32", *model.manifest.precisions)
    for precision in precisions:
        report = load(path, provider="cpu", precision=precision).verify()
        assert report.passed, str(report)


def test_the_bundles_say_all_that_a_manifest_may_say() -> None:
    manifests = [load(path, provider="cpu").manifest for path in FIXTURES]
    assert {manifest.model.latent for manifest in manifests} == {"normal", "hierarchical", "mixture"}
    likelihoods = {"bernoulli", "continuous-bernoulli", "normal", "categorical"}
    assert {manifest.model.likelihood for manifest in manifests} == likelihoods
    assert {name for manifest in manifests for name in manifest.precisions} == {"fp16", "int8"}
    assert any(manifest.preprocessing and manifest.model.num_classes for manifest in manifests)
    assert any(manifest.dataset and manifest.dataset.class_names for manifest in manifests)
    assert any(manifest.torch_files for manifest in manifests)


@pytest.mark.parametrize(
    ("producers", "said"),
    [
        ({"edgevae": "0.4.0"}, "install a newer edgevae: 0.4.0, which wrote it, or later"),
        ({"edgevae": "0.4 && rm"}, "install a newer edgevae"),
        ({"edgevae": 4}, "install a newer edgevae"),
        (["edgevae"], "install a newer edgevae"),
        (None, "install a newer edgevae"),
    ],
)
def test_a_newer_schema_is_refused_with_the_version_to_install(producers: object, said: str) -> None:
    manifest = {"schema_version": SCHEMA_VERSION + 1, "producers": producers, "unheard_of": 1}
    with pytest.raises(BundleError) as error:
        Manifest.decode(json.dumps(manifest).encode())
    expected = f"manifest.json has schema version {SCHEMA_VERSION + 1}, this runtime reads {SCHEMA_VERSION}; {said}"
    assert str(error.value) == expected


def test_all_sources_are_python_3_10() -> None:
    assert len(SOURCES) > 80
    for path in SOURCES:
        ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 10))


def test_the_oldest_environment_has_the_lower_bounds_of_pyproject(oldest_python: Path, tmp_path: Path) -> None:
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    found = json.loads(run(oldest_python, VERSIONS, cwd=tmp_path))
    for name in ("click", "msgspec", "numpy", "onnxruntime", "pillow"):
        bounds = re.findall(rf'"{name}>=([0-9.]+)[";]', project)  # pillow has one for each Python
        assert any(found[name].startswith(bound) for bound in bounds), f"{name} {found[name]}, expected one of {bounds}"


def test_with_the_oldest_libraries_every_bundle_verifies_and_gives_the_same(
    oldest_python: Path, tmp_path: Path
) -> None:
    paths = [*FIXTURES, *MODELS]
    run(oldest_python, NUMBERS, tmp_path / "oldest.npz", *paths, cwd=tmp_path)
    program = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n{NUMBERS}"
    run(Path(sys.executable), program, tmp_path / "here.npz", *paths, cwd=tmp_path)
    with np.load(tmp_path / "oldest.npz") as oldest, np.load(tmp_path / "here.npz") as here:
        assert set(oldest.files) == set(here.files)
        assert len(oldest.files) >= 4 * 11
        for name in here.files:
            loose = 1e-3 if "int8" in name or "elbo" in name else 2e-5
            np.testing.assert_allclose(oldest[name], here[name], rtol=loose, atol=loose, err_msg=name)


def test_with_the_oldest_libraries_the_commands_work(oldest_python: Path, tmp_path: Path) -> None:
    bundle = str(REPOSITORY / "models" / "digits-mlp")
    for arguments in (["info", bundle], ["verify", bundle], ["generate", bundle, "-n", "4", "--out", "samples.png"]):
        command = [str(oldest_python), "-W", "error", "-m", "edgevae", *arguments]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")
