"""The example with networks of one's own: from training to a bundle that needs them no more."""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import edgevae.train
from edgevae.export.cli import main as export_main
from edgevae.train.cli import main as train_main

from .serving import REPOSITORY

ARCHITECTURE = "own_networks:TanhEncoder,TanhDecoder"
WITHOUT_THE_NETWORKS = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np, edgevae
model = edgevae.load(sys.argv[2], provider="cpu", threads=1)
assert model.verify().passed
np.save(sys.argv[4], model.reconstruct(np.load(sys.argv[3]), seed=0))
assert not {"own_networks", "torch", "edgevae.train"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the example leaves, run as a reader would."""
    folder, printed = tmp_path_factory.mktemp("own") / "out", io.StringIO()
    program = REPOSITORY / "examples" / "own_networks.py"
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", [str(program), "--epochs", "2", "--out", str(folder)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(program), run_name="__main__")
    assert not ended.value.code
    first, *report, last = printed.getvalue().splitlines()
    assert first.startswith(f"trained {ARCHITECTURE}: test ELBO -")
    assert report[0].startswith("onnx: passed")
    assert last.startswith("64 images: ELBO -")
    return folder


def test_the_networks_are_those_of_the_paper(out: Path) -> None:
    run = edgevae.train.load_run(out / "run")
    shapes = {name: tuple(weight.shape) for name, weight in run.vae.named_parameters() if weight.dim() == 2}
    assert shapes == {
        "encoder.layers.0.weight": (200, 64),
        "encoder.layers.2.weight": (200, 200),
        "encoder.fc21.weight": (50, 200),
        "encoder.fc22.weight": (50, 200),
        "decoder.layers.0.weight": (200, 50),
        "decoder.layers.2.weight": (200, 200),
        "decoder.layers.4.weight": (64, 200),
    }
    kinds = [type(module).__name__ for module in run.vae.modules()]
    assert (kinds.count("Tanh"), kinds.count("Linear")) == (4, 7)
    assert run.config.training.binarize == "stochastic"
    assert [line.epoch for line in run.metrics] == [1, 2]
    assert run.metrics[1].test_elbo_nats > run.metrics[0].test_elbo_nats


def test_the_weights_begin_as_glorot_and_bengio_say() -> None:
    config = edgevae.train.ModelConfig((1, 28, 28), architecture=ARCHITECTURE, hidden_dim=200)
    for name, weight in edgevae.train.VAE(config).named_parameters():
        if weight.dim() == 1:
            assert not weight.any(), name
        else:
            assert float(weight.detach().abs().max()) == pytest.approx((6 / sum(weight.shape)) ** 0.5, rel=0.01), name


def test_the_bundle_runs_where_its_networks_are_not_known(out: Path, tmp_path: Path) -> None:
    run = edgevae.train.load_run(out / "run")
    np.save(tmp_path / "x.npy", run.samples[:5].numpy())
    paths = [REPOSITORY, out / "bundle", tmp_path / "x.npy", tmp_path / "loc_img.npy"]
    subprocess.run([sys.executable, "-c", WITHOUT_THE_NETWORKS, *map(str, paths)], cwd=tmp_path, check=True)
    with edgevae.train.evaluating(run.vae), torch.random.fork_rng([]):
        torch.manual_seed(0)
        loc_img = run.vae.reconstruct_img(run.samples[:5])
    np.testing.assert_allclose(np.load(tmp_path / "loc_img.npy"), loc_img.numpy(), atol=1e-5)
    manifest = json.loads((out / "bundle" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["model"]["architecture"] == ARCHITECTURE
    assert f"| architecture | {ARCHITECTURE}, 64-200-50 |" in (out / "bundle" / "README.md").read_text(encoding="utf-8")


def test_the_commands_do_the_same(tmp_path: Path) -> None:
    run, bundle = str(tmp_path / "run"), str(tmp_path / "bundle")
    options = ["--architecture", ARCHITECTURE, "--hidden-dim", "16", "--binarize", "stochastic", "--no-report"]
    trained = CliRunner().invoke(
        train_main, ["--dataset", "digits", "--epochs", "1", *options, "--conditional", "--out", run]
    )
    assert trained.exit_code == 0, trained.output
    assert f"{ARCHITECTURE} VAE 64-16-50, bernoulli, normal latent, 10 classes" in trained.output
    exported = CliRunner().invoke(export_main, [run, "--out", bundle, "--format", "all", "--graphs", "encoder"])
    assert exported.exit_code == 0, exported.output
    assert exported.output.count("passed") == 3
