"""`vae-run` as a person calls it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from export import Source, export_bundle
from runtime import MANIFEST_FILE, Model, load
from runtime._cli import main
from train import VAE, Dataset, ModelConfig, load_dataset


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_info_says_what_the_bundle_is(bundle: Path) -> None:
    result = run("info", bundle)
    assert result.exit_code == 0
    for text in ("small", "64-16-5", "bernoulli", "x → z_loc, z_scale", "encoder.ts", "not known"):
        assert text in result.output


def test_verify_prints_the_table_and_passes(bundle: Path) -> None:
    result = run("verify", bundle)
    assert result.exit_code == 0
    assert "onnx: passed; 256 rows" in result.output


def test_verify_exits_1_where_a_number_is_out_of_tolerance(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    manifest = (copy / MANIFEST_FILE).read_text()
    (copy / MANIFEST_FILE).write_text(manifest.replace('"atol": 0.00001', '"atol": 0').replace("0.00001", "0"))
    result = run("verify", copy)
    assert result.exit_code == 1
    assert "onnx: FAILED" in result.output


def test_encode_writes_the_posterior(bundle: Path, model: Model, digits: Dataset, tmp_path: Path) -> None:
    x = digits.test[:9].numpy()
    np.save(tmp_path / "x.npy", x)
    assert run("encode", bundle, tmp_path / "x.npy", "--out", tmp_path / "z.npz").exit_code == 0
    with np.load(tmp_path / "z.npz") as written:
        np.testing.assert_array_equal(written["z_loc"], model.encode(x).z_loc)
        np.testing.assert_array_equal(written["z_scale"], model.encode(x).z_scale)


def test_reconstruct_writes_numbers_and_pictures(bundle: Path, model: Model, digits: Dataset, tmp_path: Path) -> None:
    x = digits.test[:5].numpy()
    np.savez(tmp_path / "x.npz", x=x)
    for out in ("r.npz", "r.png"):
        result = run("reconstruct", bundle, tmp_path / "x.npz", "--seed", 3, "--out", tmp_path / out)
        assert result.exit_code == 0, result.output
    with np.load(tmp_path / "r.npz") as written:
        np.testing.assert_array_equal(written["loc_img"], model.reconstruct(x, seed=3))
    with Image.open(tmp_path / "r.png") as image:
        assert image.size == (5 * 63 + 7, 2 * 63 + 7)  # a row of five digits above a row of reconstructions


def test_image_files_are_observations(bundle: Path, model: Model, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8), dtype=np.uint8)
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file, image in zip(files, pixels, strict=True):
        Image.fromarray(image).save(file)
    assert run("encode", bundle, *files, "--out", tmp_path / "z.npz").exit_code == 0
    with np.load(tmp_path / "z.npz") as written:
        np.testing.assert_array_equal(written["z_loc"], model.encode(pixels).z_loc)


def test_generate_writes_numbers_and_pictures(bundle: Path, model: Model, tmp_path: Path) -> None:
    assert run("generate", bundle, "-n", 6, "--seed", 2, "--out", tmp_path / "g.npz").exit_code == 0
    with np.load(tmp_path / "g.npz") as written:
        np.testing.assert_array_equal(written["loc_img"], model.generate(6, seed=2))
    assert run("generate", bundle, "-n", 6, "--out", tmp_path / "g.png").exit_code == 0
    with Image.open(tmp_path / "g.png") as image:
        assert image.size == (6 * 63 + 7, 63 + 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "{tmp}"], "is not a bundle"),
        (["generate", "{bundle}", "--out", "{tmp}/g.gif"], "--out must end in .npz, or .png"),
        (["encode", "{bundle}", "{tmp}/bad.npy", "--out", "{tmp}/z.npz"], "cannot be read"),
        (["encode", "{bundle}", "{tmp}/empty.npz", "--out", "{tmp}/z.npz"], "must hold an array x, got y"),
        (["encode", "{bundle}", "{tmp}/wrong.npy", "--out", "{tmp}/z.npz"], "wrong.npy: x must have shape"),
        (["encode", "{bundle}", "{tmp}/turned.npy", "{tmp}/turned.npy", "--out", "{tmp}/z.npz"], "x must have shape"),
        (["encode", "{bundle}", "{tmp}/cut.npz", "--out", "{tmp}/z.npz"], "cannot be read"),
        (["encode", "{bundle}", "{tmp}/objects.npz", "--out", "{tmp}/z.npz"], "cannot be read"),
        (["generate", "{bundle}", "--provider", "cuda", "--out", "{tmp}/g.png"], "'cuda' does not work here"),
        (["generate", "{bundle}", "-n", "0", "--out", "{tmp}/g.png"], "Invalid value"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    bundle: Path, tmp_path: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    (tmp_path / "bad.npy").write_text("nonsense")
    np.savez(tmp_path / "empty.npz", y=np.zeros(3))
    np.save(tmp_path / "wrong.npy", np.zeros((3, 7)))
    np.save(tmp_path / "turned.npy", np.zeros((64, 4)))
    np.savez(tmp_path / "objects.npz", x=np.array([None, {}], dtype=object))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "empty.npz").read_bytes()[:-30])
    result = run(*(argument.format(bundle=bundle, tmp=tmp_path) for argument in arguments))
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.fixture(scope="module")
def labelled_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conditional model with a mixture, untrained."""
    digits = load_dataset("digits", labels=True)
    vae = VAE(ModelConfig((1, 8, 8), 3, 8, latent="mixture", components=4, num_classes=10)).eval()
    out = tmp_path_factory.mktemp("models") / "labelled"
    export_bundle(Source("labelled", vae, digits.test, "test images of digits", None, digits.test_labels), out)
    return out


def test_labels_come_from_an_option_or_from_the_file(labelled_bundle: Path, tmp_path: Path) -> None:
    model = load(labelled_bundle, provider="cpu")
    x = np.random.default_rng(0).random((4, 64), np.float32)
    np.savez(tmp_path / "xy.npz", x=x, y=[1, 2, 3, 4])
    np.save(tmp_path / "x.npy", x)
    assert run("encode", labelled_bundle, tmp_path / "xy.npz", "--out", tmp_path / "z.npz").exit_code == 0
    with np.load(tmp_path / "z.npz") as written:
        posterior = model.encode(x, y=[1, 2, 3, 4])
        np.testing.assert_array_equal(written["z_loc"], posterior.z_loc)
        np.testing.assert_array_equal(written["component_probs"], posterior.component_probs)
    out = tmp_path / "r.npz"
    assert run("reconstruct", labelled_bundle, tmp_path / "x.npy", "--y", 7, "--out", out).exit_code == 0
    with np.load(out) as written:
        np.testing.assert_array_equal(written["loc_img"], model.reconstruct(x, y=7))
    refused = run("encode", labelled_bundle, tmp_path / "x.npy", "--out", tmp_path / "z.npz")
    assert refused.exit_code == 2
    assert "x.npy: y is needed: this model sees labels, integers from 0 to 9; give --y" in refused.output


def test_generate_makes_a_chosen_class_or_an_equal_share_of_each(labelled_bundle: Path, tmp_path: Path) -> None:
    model = load(labelled_bundle, provider="cpu")
    options = ["-n", 40, "--y", "each", "--component", 2]
    assert run("generate", labelled_bundle, *options, "--out", tmp_path / "g.npz").exit_code == 0
    with np.load(tmp_path / "g.npz") as written:
        expected = model.generate(40, seed=0, y=np.repeat(np.arange(10), 4), component=2)
        np.testing.assert_array_equal(written["loc_img"], expected)
    assert run("generate", labelled_bundle, *options, "--out", tmp_path / "g.png").exit_code == 0
    with Image.open(tmp_path / "g.png") as image:
        assert image.size == (4 * 63 + 7, 10 * 63 + 7)  # a class a row


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "y is needed: this model sees labels"),
        (["--y", "ten"], "--y must be an integer, or each, got 'ten'"),
        (["--y", "10"], "y must be from 0 to 9, got 10"),
        (["--y", "each", "-n", "7"], "--y each makes equal shares of 10 choices, and -n is 7"),
        (["--y", "1", "--component", "4"], "component must be from 0 to 3, got 4"),
        (["--y", "each", "--component", "each"], "--y each and --component each were both given"),
    ],
)
def test_choices_that_a_model_has_not_are_exit_code_2(
    labelled_bundle: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    result = run("generate", labelled_bundle, *options, "--out", tmp_path / "g.png")
    assert result.exit_code == 2
    assert message in result.output


def test_info_names_labels_and_latent(labelled_bundle: Path) -> None:
    lines = run("info", labelled_bundle).output.splitlines()
    assert any(line.split(maxsplit=1) == ["labels", "y, integers from 0 to 9"] for line in lines)
    assert any("mixture of 4, 3 dimensions" in line for line in lines)
    assert any(line.startswith("prior") and "component, eps → z_prior" in line for line in lines)


def test_score_counts_the_unusual_and_writes_a_row_each(digits: Dataset, tmp_path: Path) -> None:
    bundle = Path(__file__).parents[2] / "models" / "digits-mlp"
    noise = np.random.default_rng(0).random((3, 1, 8, 8), np.float32)
    np.save(tmp_path / "x.npy", np.concatenate([digits.test[:5].numpy(), noise]))
    for out in ("s.csv", "s.npz"):
        result = run("score", bundle, tmp_path / "x.npy", "--out", tmp_path / out)
        assert result.exit_code == 0, result.output
        assert result.output.startswith("3 of 8 observations lie below -")
    rows = [line.split(",") for line in (tmp_path / "s.csv").read_text().splitlines()]
    assert rows[0] == ["elbo", "reconstruction", "kl", "unusual"]
    assert [row[3] for row in rows[1:]] == ["False"] * 5 + ["True"] * 3
    with np.load(tmp_path / "s.npz") as written:
        np.testing.assert_allclose(written["elbo"], [float(row[0]) for row in rows[1:]])
    assert run("score", bundle, tmp_path / "x.npy", "--out", tmp_path / "s.txt").exit_code == 2
    assert run("score", bundle, tmp_path / "x.npy", "--rate", 2).exit_code == 2
