"""The runtime on any system, without PyTorch: bundles of this repository, and packages of `edgevae[cpu]` and pytest.

pip install '.[cpu]' pytest
python -m pytest --noconftest tests/test_runtime_alone.py
"""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import edgevae

MODELS = Path(__file__).parent.parent / "models"
NAMES = sorted(path.name for path in MODELS.iterdir())
# torch.manual_seed(0), then torch.randn(20) and torch.randn(3, 5): PyTorch draws 16 and more numbers in another order.
LONG_NOISE = [-1.1258398, -1.1523602, -0.2505786, -0.4338788, 0.5988395, -1.5550951, -0.3413604, 1.8530061]
SHORT_NOISE = [1.5409961, -0.2934289, -2.1787894, 0.5684313, -1.0845224]


def load(name: str) -> edgevae.Model:
    return edgevae.load(MODELS / name, provider="cpu")


def reference(name: str) -> dict[str, Any]:
    """What Pyro computed when the bundle was exported."""
    with np.load(MODELS / name / "reference.npz") as arrays:
        return dict(arrays)


def vae_run(*arguments: object, folder: Path, program: str = "edgevae") -> str:
    command = [sys.executable, "-m", program, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_each_bundle_gives_pyros_numbers(name: str) -> None:
    assert load(name).verify().passed


def test_a_reconstruction_with_given_noise_is_pyros() -> None:
    expected = reference("mnist-mlp")
    found = load("mnist-mlp").reconstruct(expected["x"], eps=expected["eps"])
    np.testing.assert_allclose(found, expected["loc_img"], rtol=0, atol=1e-4)


def test_a_seed_gives_the_noise_of_pytorchs_cpu_generator() -> None:
    np.testing.assert_allclose(edgevae.Noise(0).standard_normal((20,))[:8], LONG_NOISE, atol=1e-6)
    np.testing.assert_allclose(edgevae.Noise(0).standard_normal((3, 5))[0], SHORT_NOISE, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_gives_the_same_images_in_threads_and_after_pickling(name: str) -> None:
    model = load(name)
    y = 3 if model.num_classes else None
    expected = model.generate(5, seed=1, y=y)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: model.generate(5, seed=1, y=y), range(8)))
    for images in (*found, pickle.loads(pickle.dumps(model)).generate(5, seed=1, y=y)):  # noqa: S301 - our own
        np.testing.assert_array_equal(images, expected)


def test_a_row_is_an_anomaly_if_its_elbo_lies_below_the_threshold() -> None:
    model, x = load("mnist-mlp"), reference("mnist-mlp")["x"][:100]
    score = model.score(x)
    np.testing.assert_allclose(score.elbo, score.reconstruction - score.kl, rtol=1e-5)
    np.testing.assert_array_equal(model.is_anomaly(x), score.elbo < model.threshold())
    noise = np.random.RandomState(0).uniform(size=(1, 784))
    assert model.is_anomaly(noise).all()


def test_uint8_means_0_to_255() -> None:
    model = load("mnist-mlp")
    x = np.random.RandomState(0).randint(0, 256, (3, 28, 28)).astype(np.uint8)
    np.testing.assert_allclose(model.reconstruct(x), model.reconstruct(x / 255), atol=1e-6)


@pytest.mark.parametrize("x", [np.zeros(784), np.full((1, 784), np.nan), np.full((1, 784), 2.0), np.zeros((1, 9))])
def test_wrong_input_is_refused(x: np.ndarray) -> None:
    with pytest.raises(edgevae.InputError, match="x must"):
        load("mnist-mlp").encode(x)


def test_an_altered_graph_is_refused(tmp_path: Path) -> None:
    bundle = tmp_path / "altered"
    shutil.copytree(MODELS / "digits-mlp", bundle)
    graph = bytearray((bundle / "encoder.onnx").read_bytes())
    graph[len(graph) // 2] ^= 1
    (bundle / "encoder.onnx").write_bytes(graph)
    with pytest.raises(edgevae.BundleError):
        edgevae.load(bundle, provider="cpu").encode(np.zeros((1, 64)))


def test_the_command_writes_arrays_images_and_tables(tmp_path: Path) -> None:
    bundle, x = MODELS / "digits-mlp", reference("digits-mlp")["x"][:10]
    np.save(tmp_path / "x.npy", x)
    assert "passed" in vae_run("verify", bundle, folder=tmp_path)
    assert json.loads(vae_run("info", bundle, "--json", folder=tmp_path))
    vae_run("generate", bundle, "-n", 9, "--seed", 0, "--out", "samples.png", folder=tmp_path)
    with Image.open(tmp_path / "samples.png") as image:
        assert min(image.size) >= 24
    vae_run("reconstruct", bundle, "x.npy", "--seed", 0, "--out", "loc_img.npy", folder=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "loc_img.npy"), load("digits-mlp").reconstruct(x, seed=0), atol=1e-6)
    vae_run("score", bundle, "x.npy", "--out", "scores.csv", folder=tmp_path)
    assert len((tmp_path / "scores.csv").read_text(encoding="utf-8").splitlines()) == 11


def test_the_package_works_when_it_is_copied_under_another_name(tmp_path: Path) -> None:
    source = Path(edgevae.__file__).parent
    shutil.copytree(source, tmp_path / "vendored", ignore=shutil.ignore_patterns("__pycache__", "train", "export"))
    program = """
import sys, vendored
model = vendored.load(sys.argv[1], provider="cpu")
assert model.verify().passed
assert not {"edgevae", "torch", "pyro"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program, str(MODELS / "digits-mlp")], cwd=tmp_path, check=True)
