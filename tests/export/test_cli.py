"""`vae-export` as a person calls it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result

import edgevae
from edgevae.export.cli import main
from edgevae.train import VAE, ModelConfig, load_run
from edgevae.train.cli import main as train_main
from edgevae.train.evaluation import collapse_advice


def export(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs in runs/, `second` the newest."""
    folder = tmp_path_factory.mktemp("workplace")
    options = ["--dataset", "digits", "--epochs", "1", "--z-dim", "3", "--hidden-dim", "8"]
    for age, name in ((10, "first"), (0, "second")):
        result = CliRunner().invoke(train_main, [*options, "--out", str(folder / "runs" / name)])
        assert result.exit_code == 0, result.output
        os.utime(folder / "runs" / name / "weights.safetensors", (1e9 - age, 1e9 - age))
    return folder


def test_without_a_run_the_newest_is_exported_as_onnx(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    result = export()
    assert result.exit_code == 0, result.output
    assert "onnx: passed; 256 rows at batch sizes 1, 2, 7, 256" in result.output
    assert "KL(q_pyro ‖ q_onnx) nats" in result.output
    assert "Wrote models/second." in result.output
    model = edgevae.load("models/second")
    assert model.manifest.name == "second"
    assert not model.manifest.torch_files
    dataset = model.manifest.dataset
    assert dataset is not None
    assert (dataset.name, dataset.num_test) == ("digits", 360)

    run = load_run(workplace / "runs" / "second")
    advice = collapse_advice(run.evaluations["test"], run.config.training)
    assert advice is not None, "an epoch is not enough for the latent"
    assert f"**Warning:** {advice}." in (workplace / "models" / "second" / "README.md").read_text(encoding="utf-8")

    again = export()
    assert again.exit_code == 1
    assert "already holds a bundle" in again.output
    assert export("--force").exit_code == 0


def test_help_groups_the_options_the_common_ones_first() -> None:
    sections = re.findall(r"^(\w.*):$", export("--help").output, re.MULTILINE)
    assert sections[:3] == ["Formats", "Output", "Precision"]
    assert sections[-1] == "Other"


def test_formats_can_be_repeated(workplace: Path, tmp_path: Path) -> None:
    out = tmp_path / "both"
    result = export(workplace / "runs/first", "--format", "torchscript", "--format", "pt2", "--out", out)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.glob("*coder*")) == [
        "decoder.pt2",
        "decoder.ts",
        "encoder.pt2",
        "encoder.ts",
    ]


def test_a_wheel_stands_beside_its_bundle_and_is_not_overwritten_unless_asked_to(
    workplace: Path, tmp_path: Path
) -> None:
    release = ["--model-version", "2.0", "--license", "apache-2.0"]
    options = [workplace / "runs/first", "--out", tmp_path / "digits-first", *release]
    result = export(*options, "--format", "wheel")
    assert result.exit_code == 0, result.output
    wheel = tmp_path / "digits_first-2.0-py3-none-any.whl"
    assert f"Wrote {wheel}. Try it with: pip install {wheel}" in result.output
    assert wheel.is_file()
    manifest = edgevae.load(tmp_path / "digits-first").manifest
    assert (manifest.version, manifest.license) == ("2.0", "Apache-2.0")

    options[2] = tmp_path / "elsewhere" / "digits-first"
    (tmp_path / "elsewhere").mkdir()
    wheel.rename(tmp_path / "elsewhere" / wheel.name)
    refused = export(*options, "--format", "wheel")
    assert refused.exit_code == 1
    assert "is already there; choose another --model-version, or give --force" in refused.output
    assert not (tmp_path / "elsewhere" / "digits-first").exists()
    assert export(*options, "--format", "wheel", "--force").exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model-version", "one"], "version must be like 1.0.0, got 'one'"),
        (["--license", "free"], "must be an SPDX expression like Apache-2.0"),
        (
            ["--format", "wheel", "--out", "{folder}/json"],
            "gives the package json, which is a module of Python's standard library",
        ),
    ],
)
def test_invalid_versions_and_licenses_are_refused_before_any_work(
    workplace: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    result = export(workplace / "runs/first", *(option.format(folder=tmp_path) for option in options))
    assert result.exit_code == 1
    assert message in result.output
    assert "verified with" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_part_of_the_model_can_be_exported(workplace: Path, tmp_path: Path) -> None:
    result = export(workplace / "runs/first", "--graphs", "encoder", "--out", tmp_path / "first")
    assert result.exit_code == 0, result.output
    assert "Try it with: vae-run info" in result.output
    assert set(edgevae.load(tmp_path / "first").manifest.graphs) == {"encoder"}


def test_a_failed_verification_is_exit_code_1_with_the_table_and_no_bundle(workplace: Path, tmp_path: Path) -> None:
    out = tmp_path / "strict"
    result = export(workplace / "runs/first", "--atol", 0, "--rtol", 0, "--out", out)
    assert result.exit_code == 1
    assert "onnx: FAILED" in result.output
    assert "no bundle was written" in result.output
    assert not out.exists()


def test_a_state_dict_is_exported_with_draws_of_its_own_prior(vae: VAE, tmp_path: Path) -> None:
    torch.save(vae.state_dict(), tmp_path / "vae.pt")
    result = export("--state-dict", tmp_path / "vae.pt", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "verified with images drawn from the model's own prior (no data set was given)" in result.output
    z = torch.randn((4, 5), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        np.testing.assert_allclose(edgevae.load(tmp_path / "out").decode(z.numpy()), vae.decoder(z), atol=1e-5)
    assert "not known: exported from a state_dict" in (tmp_path / "out" / "README.md").read_text()


def test_a_state_dict_can_be_verified_with_a_data_set(vae: VAE, tmp_path: Path) -> None:
    torch.save(vae.state_dict(), tmp_path / "vae.pt")
    result = export("--state-dict", tmp_path / "vae.pt", "--dataset", "digits", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "verified with test images of digits" in result.output


def test_int8_takes_the_training_images_of_a_data_set_and_says_where_there_are_none(vae: VAE, tmp_path: Path) -> None:
    torch.save(vae.state_dict(), tmp_path / "vae.pt")
    taken = {}
    for name, options in {"with": ("--dataset", "digits"), "without": ()}.items():
        out = tmp_path / name
        result = export("--state-dict", tmp_path / "vae.pt", *options, "--precision", "int8", "--out", out)
        assert result.exit_code == 0, result.output
        assert ("no training data to calibrate int8" in result.output) == (name == "without")
        operators = [node.op_type for node in onnx.load(out / "encoder.int8.onnx").graph.node]
        taken[name] = operators.count("MatMulInteger")
    assert taken == {"with": 2, "without": 1}


@pytest.mark.parametrize(("shape", "picture"), [("3,4,4", True), ("6,8", True), ("12,2,2", False)])
def test_a_state_dict_of_any_shape_is_exported(tmp_path: Path, shape: str, picture: bool) -> None:
    torch.save(VAE(ModelConfig((48,), 3, 6)).state_dict(), tmp_path / "vae.pt")
    result = export("--state-dict", tmp_path / "vae.pt", "--data-shape", shape, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "samples.png").exists() == picture
    assert ("samples.png" in (tmp_path / "out" / "README.md").read_text()) == picture


def test_a_state_dict_that_does_not_fit_says_what_is_missing(vae: VAE, tmp_path: Path) -> None:
    state = vae.state_dict()
    del state["encoder.fc22.weight"]
    torch.save(state, tmp_path / "vae.pt")
    result = export("--state-dict", tmp_path / "vae.pt", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "missing encoder.fc22.weight" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "tflite"], "'tflite' is not one of"),
        (["{run}", "--graphs", "elbo"], "'elbo' is not one of"),
        (["{run}", "--opset", "99"], "99 is not in the range 18<=x<="),
        (["{run}", "--dataset", "digits"], "--data-shape and --dataset go with --state-dict"),
        (["{run}", "--state-dict", "{run}/config.json"], "RUN and --state-dict were both given"),
        (["{run}", "--atol", "nan"], "--atol and --rtol must be finite"),
        (["--state-dict", "{run}/config.json", "--data-shape", "1,x"], "expected sizes with commas"),
        (["--state-dict", "{run}/config.json", "--data-dir", "{run}"], "--data-dir goes with --dataset"),
    ],
)
def test_wrong_usage_is_exit_code_2(workplace: Path, arguments: list[str], message: str) -> None:
    result = export(*(argument.format(run=workplace / "runs/first") for argument in arguments))
    assert result.exit_code == 2
    assert message in result.output


def test_without_any_run_the_error_says_how_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = export()
    assert result.exit_code == 1
    assert "there is no run in runs/; train one with python -m train" in result.output
