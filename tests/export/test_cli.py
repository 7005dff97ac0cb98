"""`vae-export` as a person calls it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import onnx
import pyro
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

import edgevae
from edgevae.cli import main as run_main
from edgevae.export import latent_space_id
from edgevae.export.cli import main
from edgevae.train import VAE, DataConfig, Dataset, ModelConfig, elbo_of_each, load_data, load_run
from edgevae.train.cli import main as train_main
from edgevae.train.evaluation import collapse_advice


def export(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs in runs/, `second` the newest."""
    folder = tmp_path_factory.mktemp("workplace")
    options = ["--dataset", "digits", "--epochs", "1", "--z-dim", "3", "--hidden-dim", "8", "--no-report"]
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
    advice = collapse_advice(run.evaluations["test"], run.config.training, run.config.model)
    assert advice is not None, "an epoch is not enough for the latent"
    assert f"**Warning:** {advice}." in (workplace / "models" / "second" / "README.md").read_text(encoding="utf-8")

    again = export()
    assert again.exit_code == 1
    assert "already holds a bundle" in again.output
    assert export("--force", "--graphs", "encoder").exit_code == 0
    assert set(edgevae.load("models/second").manifest.graphs) == {"encoder"}


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
    options = [workplace / "runs/first", "--out", tmp_path / "digits-first", *release, "--graphs", "encoder"]
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
    result = export("--state-dict", tmp_path / "vae.pt", "--graphs", "decoder", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "verified with images drawn from the model's own prior (no data set was given)" in result.output
    z = torch.randn((4, 5), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        np.testing.assert_allclose(edgevae.load(tmp_path / "out").decode(z.numpy()), vae.decoder(z), atol=1e-5)
    assert "not known: trained elsewhere" in (tmp_path / "out" / "README.md").read_text()

    with pytest.raises(edgevae.InputError, match="holds no distribution of test images"):
        edgevae.load(tmp_path / "out").threshold()


def test_pyros_parameter_store_gives_the_bundle_of_the_state_dict(vae: VAE, tmp_path: Path) -> None:
    store = pyro.get_param_store()
    with store.scope():
        pyro.module("encoder", vae.encoder)
        pyro.module("decoder", vae.decoder)
        store.save(str(tmp_path / "vae.save"))
    torch.save(
        {"epoch": 3, "model": {f"module.{name}": w for name, w in vae.state_dict().items()}}, tmp_path / "vae.pt"
    )
    models = {}
    for file, notes in (
        ("vae.save", ["read as Pyro's parameter store"]),
        ("vae.pt", ["taken from model", "names were shortened, module."]),
    ):
        out = tmp_path / f"of-{file}"
        result = export("--state-dict", tmp_path / file, "--graphs", "decoder", "--out", out)
        assert result.exit_code == 0, result.output
        for note in notes:
            assert f"{tmp_path / file}: {note}" in result.output
        models[file] = edgevae.load(out, provider="cpu")
    first, second = models.values()
    assert first.latent_space_id == second.latent_space_id == latent_space_id(vae)
    np.testing.assert_array_equal(first.generate(8, seed=0), second.generate(8, seed=0))


def test_of_several_weights_in_a_checkpoint_one_is_chosen_by_its_key(vae: VAE, tmp_path: Path) -> None:
    other = {name: torch.zeros_like(tensor) for name, tensor in vae.state_dict().items()}
    torch.save({"model": other, "ema": vae.state_dict()}, tmp_path / "vae.ckpt")
    options = ["--state-dict", tmp_path / "vae.ckpt", "--graphs", "encoder", "--out", tmp_path / "out"]
    result = export(*options)
    assert result.exit_code == 1
    assert (
        "several sets of weights: ema (10 tensors), model (10 tensors); choose one with --weights-key" in result.output
    )
    result = export(*options, "--weights-key", "ema")
    assert result.exit_code == 0, result.output
    assert edgevae.load(tmp_path / "out").latent_space_id == latent_space_id(vae)


def test_a_folder_of_weights_is_refused_in_our_own_words(tmp_path: Path) -> None:
    result = export("--state-dict", tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert f"{tmp_path} is a folder; name the file with the weights in it" in result.output


def check_threshold(out: Path, vae: VAE, name: str, images: torch.Tensor) -> edgevae.Model:
    """Check that a bundle knows how the ELBO of images is distributed, and says so; return the model."""
    model = edgevae.load(out, provider="cpu")
    dataset = model.manifest.dataset
    assert dataset is not None
    assert (dataset.name, dataset.num_train, dataset.num_test, dataset.num_particles) == (name, 0, len(images), 10)
    elbos = elbo_of_each(vae, images, 10).numpy()
    assert dataset.test_elbo_nats == pytest.approx(elbos.mean())
    for rate in (0.01, 0.05, 0.5):
        assert model.threshold(rate) == pytest.approx(np.quantile(elbos, rate))
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "| trained on | not known: trained elsewhere |" in card
    elbo = f"{elbos.mean():.2f} nats an image, {len(images)} images of {name}"
    assert f"| test ELBO | {elbo}, 10 particles |" in card
    info = " ".join(CliRunner().invoke(run_main, ["info", str(out)]).output.split())
    assert "trained on unknown" in info
    assert f"test ELBO {elbo}" in info
    return model


def test_the_test_images_of_a_data_set_verify_weights_and_give_the_threshold(
    vae: VAE, digits: Dataset, tmp_path: Path
) -> None:
    torch.save(vae.state_dict(), tmp_path / "vae.pt")
    result = export("--state-dict", tmp_path / "vae.pt", "--dataset", "digits", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "verified with test images of digits" in result.output
    model = check_threshold(tmp_path / "out", vae, "digits", digits.test)
    assert model.is_anomaly(digits.test.numpy(), rate=0.05).mean() == pytest.approx(0.05, abs=0.02)


def test_all_rows_of_own_data_give_the_threshold_with_the_preprocessing_of_a_training(
    vae: VAE, digits: Dataset, tmp_path: Path
) -> None:
    torch.save(vae.state_dict(), tmp_path / "vae.pt")
    stored = (16 * digits.test[:, 0]).to(torch.int16).numpy()  # images (n, h, w), 0 to 16
    np.save(tmp_path / "sensors.npy", stored)
    options = ["--state-dict", tmp_path / "vae.pt", "--data", tmp_path / "sensors.npy", "--out", tmp_path / "out"]
    refused = export(*options)
    assert refused.exit_code == 1
    assert "say with --scale LOW,HIGH which values become 0 and 1, like --scale 0,16" in refused.output
    assert "--likelihood" not in refused.output, "the weights are trained already"
    result = export(*options, "--scale", "0,16", "--precision", "int8")
    assert result.exit_code == 0, result.output
    assert "verified with test images of sensors" in result.output
    assert "no training data to calibrate int8" not in result.output
    model = check_threshold(tmp_path / "out", vae, "sensors", digits.test)
    assert model.manifest.preprocessing is not None
    assert model.manifest.preprocessing.scale == (0, 16)
    assert model.is_anomaly(stored, rate=0.05).mean() == pytest.approx(0.05, abs=0.02)


def test_a_folder_of_images_gives_the_threshold(vae: VAE, tmp_path: Path) -> None:
    torch.save(vae.state_dict(), tmp_path / "vae.pt")
    (tmp_path / "pictures").mkdir()
    for number in range(5):
        pixels = np.random.RandomState(number).randint(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number}.png")
    options = ["--data", tmp_path / "pictures", "--resize", "8,8", "--grey", "--graphs", "encoder"]
    result = export("--state-dict", tmp_path / "vae.pt", *options, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    data = DataConfig(data=tmp_path / "pictures", resize=(8, 8), grey=True, test_fraction=0.2)
    parts = load_data(data, labels=False)  # in a training, a fifth is for testing
    model = edgevae.load(tmp_path / "out", provider="cpu")
    assert model.manifest.preprocessing == parts.preprocessing
    dataset = model.manifest.dataset
    assert dataset is not None
    assert (dataset.name, dataset.num_test) == ("pictures", len(parts.train) + len(parts.test))


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((20, 48), [], None),
        ((20, 3, 4, 4), [], None),
        ((20, 48), ["--data-shape", "48"], None),
        ((20, 48), ["--data-shape", "3,4,4"], "shape (48,), got data shape (3, 4, 4); leave that out, or give data"),
        ((20, 64), [], "is for observations of 48 values, got shape (64,)"),
    ],
)
def test_observations_have_the_shape_of_the_data(
    tmp_path: Path, shape: tuple[int, ...], options: list[str], message: str | None
) -> None:
    torch.save(VAE(ModelConfig((48,), 3, 6)).state_dict(), tmp_path / "vae.pt")
    np.save(tmp_path / "x.npy", np.random.RandomState(0).rand(*shape).astype(np.float32))
    data = ["--data", tmp_path / "x.npy", *options]
    result = export("--state-dict", tmp_path / "vae.pt", *data, "--graphs", "encoder", "--out", tmp_path / "out")
    assert result.exit_code == (0 if message is None else 1), result.output
    if message is None:
        assert edgevae.load(tmp_path / "out").data_shape == shape[1:]
    else:
        assert message in result.output
        assert not (tmp_path / "out").exists()


def test_data_whose_elbo_is_not_finite_are_refused(tmp_path: Path) -> None:
    vae = VAE(ModelConfig((1, 2, 2), 1, 2))
    with torch.no_grad():
        vae.encoder.fc22.weight.fill_(1e3)
    torch.save(vae.state_dict(), tmp_path / "vae.pt")
    np.save(tmp_path / "x.npy", np.ones((3, 2, 2), np.float32))
    result = export("--state-dict", tmp_path / "vae.pt", "--data", tmp_path / "x.npy", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "the ELBO of 3 of 3 rows of x, at least a quarter, is NaN or infinite" in result.output


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
    options = ["--data-shape", shape, "--graphs", "encoder"]
    result = export("--state-dict", tmp_path / "vae.pt", *options, "--out", tmp_path / "out")
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
        (
            ["{run}", "--dataset", "digits"],
            "--dataset goes with --state-dict or --program; a run knows its own weights and data",
        ),
        (["{run}", "--weights-key", "ema"], "--weights-key goes with --state-dict"),
        (["{run}", "--data-shape", "4,4"], "--data-shape goes with --state-dict"),
        (["{run}", "--grey"], "--grey goes with --state-dict"),
        (["{run}", "--state-dict", "{run}/config.json"], "RUN and --state-dict were both given"),
        (["{run}", "--atol", "nan"], "--atol and --rtol must be finite"),
        (["--state-dict", "{run}/config.json", "--data-shape", "1,x"], "expected sizes with commas"),
        (["--state-dict", "{run}/config.json", "--data-dir", "{run}"], "--data-dir goes with --dataset"),
        (["--state-dict", "{run}/config.json", "--scale", "0,1"], "--scale goes with --data"),
        (["--state-dict", "{run}/config.json", "--dataset", "digits", "--data", "{run}"], "got both, give one of them"),
        (["--state-dict", "{run}/config.json", "--dataset", "digits", "--grey"], "grey goes with data, own files"),
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
