"""The commands of `vae-run` that run a model."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image

from edgevae import Model, Noise, load
from edgevae.cli import main
from edgevae.export import Source, export_bundle
from edgevae.train import VAE, Dataset, ModelConfig, load_dataset

MODELS = Path(__file__).parents[2] / "models"
DIGITS = MODELS / "digits-mlp"
REFERENCE = DIGITS / "reference.npz"
CONDITIONAL = MODELS / "mnist-conditional"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def record_of(result: Result) -> Any:
    """The one JSON object that a command printed, in which no number is NaN."""
    assert result.stderr == ""
    return json.loads(result.stdout, parse_constant=pytest.fail)


@pytest.fixture(scope="module")
def labelled_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conditional model with a mixture, untrained."""
    digits = load_dataset("digits", labels=True)
    vae = VAE(ModelConfig((1, 8, 8), 3, 8, latent="mixture", components=4, num_classes=10)).eval()
    out = tmp_path_factory.mktemp("models") / "labelled"
    export_bundle(Source("labelled", vae, digits.test, "test images of digits", None, digits.test_labels), out)
    return out


def test_encode_writes_the_posterior(bundle: Path, model: Model, digits: Dataset, tmp_path: Path) -> None:
    x = digits.test[:9].numpy()
    np.save(tmp_path / "x.npy", x)
    assert run("encode", bundle, tmp_path / "x.npy", "--out", tmp_path / "z.npz").exit_code == 0
    with np.load(tmp_path / "z.npz") as written:
        np.testing.assert_array_equal(written["z_loc"], model.encode(x).z_loc)
        np.testing.assert_array_equal(written["z_scale"], model.encode(x).z_scale)


def test_encode_writes_the_format_of_the_suffix(bundle: Path, model: Model, digits: Dataset, tmp_path: Path) -> None:
    x = digits.test[:30].numpy()
    np.save(tmp_path / "x.npy", x)
    posterior = model.encode(x)
    for suffix in ("npz", "npy", "csv", "json"):
        options = ["--batch-size", 7, "--out", tmp_path / f"z.{suffix}"]
        result = run("encode", bundle, tmp_path / "x.npy", *options)
        assert result.exit_code == 0, result.output
    with np.load(tmp_path / "z.npz", allow_pickle=False) as written:
        assert sorted(written.files) == ["latent_space_id", "z_loc", "z_scale"]
        assert str(written["latent_space_id"]) == posterior.latent_space_id
    np.testing.assert_allclose(np.load(tmp_path / "z.npy"), posterior.z_loc, atol=1e-6)
    lines = [line.split(",") for line in (tmp_path / "z.csv").read_text().splitlines()]
    assert lines[0] == [f"{name}[{dim}]" for name in ("z_loc", "z_scale") for dim in range(5)]
    np.testing.assert_allclose(np.array(lines[1:], float)[:, 5:], posterior.z_scale, atol=1e-6)
    content = json.loads((tmp_path / "z.json").read_text())
    np.testing.assert_allclose(content["z_loc"], posterior.z_loc, atol=1e-6)
    assert content["latent_space_id"] == posterior.latent_space_id


def test_encode_writes_the_other_arrays_of_mixtures_and_hierarchies(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((4, 784), np.float32))
    expected = {
        "mnist-mixture": ["component_probs", "latent_space_id", "z_loc", "z_scale"],
        "mnist-hierarchical": ["latent_space_id", "z_loc", "z_loc_2", "z_scale", "z_scale_2"],
    }
    for name, arrays in expected.items():
        out = tmp_path / f"{name}.npz"
        assert run("encode", MODELS / name, tmp_path / "x.npy", "--out", out).exit_code == 0
        with np.load(out) as written:
            assert sorted(written.files) == arrays
            posterior = load(MODELS / name, provider="cpu").encode(np.load(tmp_path / "x.npy"))
            np.testing.assert_array_equal(written[arrays[-1]], posterior.levels[-1].z_scale)


def test_image_files_are_observations(bundle: Path, model: Model, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8), dtype=np.uint8)
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file, image in zip(files, pixels, strict=True):
        Image.fromarray(image).save(file)
    assert run("encode", bundle, *files, "--out", tmp_path / "z.npz").exit_code == 0
    with np.load(tmp_path / "z.npz") as written:
        np.testing.assert_array_equal(written["z_loc"], model.encode(pixels).z_loc)


def test_labels_come_from_an_option_or_from_the_file(tmp_path: Path) -> None:
    model = load(CONDITIONAL, provider="cpu")
    x = np.random.default_rng(0).random((4, 784), np.float32)
    np.savez(tmp_path / "xy.npz", x=x, y=[1, 2, 3, 4])
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", [4, 3, 2, 1])
    assert run("encode", CONDITIONAL, tmp_path / "xy.npz", "--out", tmp_path / "z.npz").exit_code == 0
    with np.load(tmp_path / "z.npz") as written:
        np.testing.assert_array_equal(written["z_loc"], model.encode(x, y=[1, 2, 3, 4]).z_loc)
        assert written["y"].tolist() == [1, 2, 3, 4]
    out = tmp_path / "r.npz"
    assert run("reconstruct", CONDITIONAL, tmp_path / "x.npy", "--y", 7, "--out", out).exit_code == 0
    with np.load(out) as written:
        np.testing.assert_array_equal(written["loc_img"], model.reconstruct(x, y=7))
    assert (
        run("reconstruct", CONDITIONAL, tmp_path / "x.npy", "--labels", tmp_path / "y.npy", "--out", out).exit_code == 0
    )
    with np.load(out) as written:
        np.testing.assert_array_equal(written["loc_img"], model.reconstruct(x, y=[4, 3, 2, 1]))
    refused = run("encode", CONDITIONAL, tmp_path / "x.npy", "--out", tmp_path / "z.npz")
    assert refused.exit_code == 2
    assert "x.npy: y is needed: this model sees labels, integers from 0 to 9; give --y" in refused.output


def test_decode_gives_back_what_encode_wrote(bundle: Path, model: Model, digits: Dataset, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", digits.test[:70].numpy())
    assert run("encode", bundle, tmp_path / "x.npy", "--out", tmp_path / "z.npz").exit_code == 0
    assert run("encode", bundle, tmp_path / "x.npy", "--out", tmp_path / "z.npy").exit_code == 0
    for source in ("z.npz", "z.npy"):
        for out in ("x.npz", "loc_img.npy", "x.png"):
            result = run("decode", bundle, tmp_path / source, "--batch-size", 9, "--out", tmp_path / out)
            assert result.exit_code == 0, result.output
        expected = model.decode(np.load(tmp_path / "z.npy"))
        np.testing.assert_allclose(np.load(tmp_path / "loc_img.npy"), expected, atol=1e-6)
        with np.load(tmp_path / "x.npz") as written:
            np.testing.assert_allclose(written["loc_img"], expected, atol=1e-6)
        with Image.open(tmp_path / "x.png") as image:
            assert image.size == (8 * 63 + 7, 8 * 63 + 7)  # the first 64


def test_decode_refuses_latents_of_another_model(bundle: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "z.npz", z=np.zeros((2, 5), np.float32), latent_space_id=np.array("f" * 64))
    np.save(tmp_path / "wide.npy", np.zeros((2, 6), np.float32))
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 5), np.float32))
    (tmp_path / "z.png").touch()
    for name, message in (
        ("z.npz", "z is of latent space ffffffffffffffff, this model's is"),
        ("wide.npy", "wide.npy: z must have shape (batch, 5), got (2, 6)"),
        ("x.npz", "x.npz: must hold an array z or z_loc, got x"),
        ("z.png", "z.png: latents are read from .npy or .npz"),
    ):
        for out in ("out.npy", "out.png"):
            result = run("decode", bundle, tmp_path / name, "--out", tmp_path / out)
            assert result.exit_code == 2
            assert message in result.output
            assert not (tmp_path / out).exists()


def test_latents_of_a_conditional_model_keep_their_labels(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((4, 784), np.float32)
    np.savez(tmp_path / "xy.npz", x=x, y=[1, 2, 3, 4])
    encoded = run("encode", CONDITIONAL, tmp_path / "xy.npz", "--out", tmp_path / "z.npz")
    assert "z_loc, z_scale, y, 4 rows of 50" in encoded.stdout
    assert run("decode", CONDITIONAL, tmp_path / "z.npz", "--out", tmp_path / "a.npy").exit_code == 0
    assert run("decode", CONDITIONAL, tmp_path / "z.npz", "--y", 7, "--out", tmp_path / "b.npy").exit_code == 0
    model = load(CONDITIONAL, provider="cpu")
    z = model.encode(x, y=[1, 2, 3, 4]).z_loc
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), model.decode(z, y=[1, 2, 3, 4]))
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), model.decode(z, y=7))


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


@pytest.mark.parametrize(("count", "batch_size"), [(5, 1024), (100, 30), (1500, 400)])
def test_the_noise_of_a_seed_does_not_depend_on_the_batch_size(
    bundle: Path, model: Model, tmp_path: Path, count: int, batch_size: int
) -> None:
    x = np.random.default_rng(0).random((count, 64), np.float32)
    np.save(tmp_path / "x.npy", x)
    options = ["--seed", 3, "--batch-size", batch_size, "--out"]
    for out in ("r.npy", "r.npz", "r.png"):
        result = run("reconstruct", bundle, tmp_path / "x.npy", *options, tmp_path / out)
        assert result.exit_code == 0, result.output
    if count <= 1024:
        expected = model.reconstruct(x, seed=3)
    else:
        expected = np.concatenate(list(model.reconstruct_batches(x, seed=3)))
    np.testing.assert_allclose(np.load(tmp_path / "r.npy"), expected, atol=1e-6)
    with np.load(tmp_path / "r.npz") as written:
        np.testing.assert_allclose(written["loc_img"], expected, atol=1e-6)
    with Image.open(tmp_path / "r.png") as image:
        shown = np.asarray(image)[7 + 63 + 3 : 7 + 63 + 56 : 7, 7 + 3 : 7 + 56 : 7] / 255
    np.testing.assert_allclose(shown.ravel(), expected[0], atol=0.003)


def test_score_finds_anomalous_rows_and_writes_the_elbo_of_each(digits: Dataset, tmp_path: Path) -> None:
    bundle = MODELS / "digits-mlp"
    noise = np.random.default_rng(0).random((3, 1, 8, 8), np.float32)
    np.save(tmp_path / "x.npy", np.concatenate([digits.test[:5].numpy(), noise]))
    for out in ("s.csv", "s.npz", "s.json"):
        result = run("score", bundle, tmp_path / "x.npy", "--out", tmp_path / out)
        assert result.exit_code == 0, result.output
        text = re.sub(r"-\d+\.\d\d", "-1.2", result.output)
        assert text == (
            "3 of 8 rows are anomalous: ELBO below -1.2 nats, the threshold that 1 % of the test rows fall below\n"
        )
    rows = [line.split(",") for line in (tmp_path / "s.csv").read_text().splitlines()]
    assert rows[0] == ["elbo", "reconstruction", "kl", "anomalous"]
    assert [row[3] for row in rows[1:]] == ["False"] * 5 + ["True"] * 3
    with np.load(tmp_path / "s.npz") as written:
        np.testing.assert_allclose(written["elbo"], [float(row[0]) for row in rows[1:]])
        np.testing.assert_array_equal(written["elbo"], load(bundle).score(np.load(tmp_path / "x.npy")).elbo)
    assert json.loads((tmp_path / "s.json").read_text())["anomalous"] == [False] * 5 + [True] * 3
    assert run("score", bundle, tmp_path / "x.npy", "--out", tmp_path / "s.txt").exit_code == 2
    assert run("score", bundle, tmp_path / "x.npy", "--rate", 2).exit_code == 2


def test_score_finds_nothing_anomalous_without_quantiles_of_the_test_elbo(bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 64), np.uint8))
    result = run("score", bundle, tmp_path / "x.npy", "--out", tmp_path / "s.csv")
    assert result.exit_code == 0, result.output
    assert "no quantiles of the test ELBO, so there is no threshold for anomalous rows" in result.output
    assert (tmp_path / "s.csv").read_text().startswith("elbo,reconstruction,kl\n")
    refused = run("score", bundle, tmp_path / "x.npy", "--rate", 0.01)
    assert refused.exit_code == 2
    assert "holds no distribution of test images" in refused.output


def test_many_rows_are_scored_with_one_stream_of_noise(bundle: Path, model: Model, tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((1500, 64), np.float32)
    np.save(tmp_path / "x.npy", x)
    assert run("score", bundle, tmp_path / "x.npy", "--seed", 5, "--out", tmp_path / "s.npz").exit_code == 0
    stream = Noise(5)
    expected = np.concatenate([model.score(part, stream).elbo for part in (x[:1024], x[1024:])])
    with np.load(tmp_path / "s.npz") as written:
        np.testing.assert_array_equal(written["elbo"], expected)


@pytest.fixture
def image_folder(digits: Dataset, tmp_path: Path) -> Path:
    """Four digits and, as `odd, one.png`, noise."""
    folder = tmp_path / "images"
    folder.mkdir()
    images = {f"{i}.png": image.numpy() * 255 for i, image in enumerate(digits.test[:4])}
    images["odd, one.png"] = np.random.default_rng(0).random((1, 8, 8)) * 255
    for name, image in images.items():
        Image.fromarray(image.reshape(8, 8).astype(np.uint8)).save(folder / name)
    return folder


@pytest.mark.parametrize("command", ["score", "encode"])
def test_each_row_names_its_image(command: str, image_folder: Path, tmp_path: Path) -> None:
    files = [str(image_folder / name) for name in ("0.png", "1.png", "2.png", "3.png", "odd, one.png")]
    batches = ["--batch-size", 2] if command == "encode" else []
    for out in ("rows.csv", "rows.json", "rows.npz"):
        result = run(command, DIGITS, image_folder, *batches, "--out", tmp_path / out)
        assert result.exit_code == 0, result.output
    with (tmp_path / "rows.csv").open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames is not None
    assert reader.fieldnames[0] == "file"
    assert [row["file"] for row in rows] == files
    assert json.loads((tmp_path / "rows.json").read_text())["file"] == files
    with np.load(tmp_path / "rows.npz", allow_pickle=False) as arrays:
        assert arrays["file"].tolist() == files
    if command == "score":
        assert [row["file"] for row in rows if row["anomalous"] == "True"] == files[-1:]


def test_rows_of_several_files_name_their_file_and_those_of_one_array_do_not(
    digits: Dataset, image_folder: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", digits.test[:3].numpy())
    inputs = [tmp_path / "x.npy", image_folder / "0.png", tmp_path / "x.npy"]
    assert run("encode", DIGITS, *inputs, "--batch-size", 2, "--out", tmp_path / "z.json").exit_code == 0
    names = [*[inputs[0]] * 3, inputs[1], *[inputs[2]] * 3]
    assert json.loads((tmp_path / "z.json").read_text())["file"] == [str(name) for name in names]
    assert run("encode", DIGITS, *inputs, "--out", tmp_path / "z.npy").exit_code == 0
    assert np.load(tmp_path / "z.npy").shape == (7, 50)
    for command in ("encode", "score"):
        assert run(command, DIGITS, tmp_path / "x.npy", "--out", tmp_path / "one.json").exit_code == 0
        assert "file" not in json.loads((tmp_path / "one.json").read_text())
        assert "the path of each row's file" in " ".join(run(command, "--help").output.split())


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have file names in Unicode only")
def test_a_file_name_that_is_not_utf8_is_written_with_escapes(image_folder: Path, tmp_path: Path) -> None:
    (image_folder / "0.png").rename(image_folder / os.fsdecode(b"\xff.png"))
    for out in ("rows.csv", "rows.json", "rows.npz"):
        result = run("score", DIGITS, image_folder, "--out", tmp_path / out, "--json")
        assert result.exit_code == 0, result.output
    assert rf"{image_folder}/\xff.png" in json.loads((tmp_path / "rows.json").read_text())["file"]
    assert rf"{image_folder}/\xff.png" in (tmp_path / "rows.csv").read_text()


def test_score_prints_its_summary_without_a_file() -> None:
    found = record_of(run("score", DIGITS, REFERENCE, "--json"))
    assert found["out"] is None
    assert found["threshold_nats"] < found["mean_elbo_nats"] < 0
    assert 0 < found["anomalous"] < 256


def test_generate_writes_numbers_and_pictures(bundle: Path, model: Model, tmp_path: Path) -> None:
    for out in ("g.npz", "g.npy"):
        assert run("generate", bundle, "-n", 6, "--seed", 2, "--out", tmp_path / out).exit_code == 0
    with np.load(tmp_path / "g.npz") as written:
        np.testing.assert_array_equal(written["loc_img"], model.generate(6, seed=2))
    np.testing.assert_array_equal(np.load(tmp_path / "g.npy"), model.generate(6, seed=2))
    assert run("generate", bundle, "-n", 6, "--out", tmp_path / "g.png").exit_code == 0
    with Image.open(tmp_path / "g.png") as image:
        assert image.size == (6 * 63 + 7, 63 + 7)


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
        ([], "this model sees labels, integers from 0 to 9; give --y, or --y each for all of them"),
        (["--y", "ten"], "--y must be an integer, or each, got 'ten'"),
        (["--y", "10"], "y must be from 0 to 9, got 10"),
        (["--y", "each", "-n", "7"], "--y each needs -n to be a multiple of 10, got 7"),
        (["--y", "1", "--component", "4"], "component must be from 0 to 3, got 4"),
        (["--y", "each", "--component", "each"], "--y each and --component each were both given"),
    ],
)
def test_choices_that_do_not_fit_the_model_are_refused(
    labelled_bundle: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    result = run("generate", labelled_bundle, *options, "--out", tmp_path / "g.png")
    assert result.exit_code == 2
    assert message in result.output


def test_interpolate_decodes_a_line_a_pair(bundle: Path, model: Model, digits: Dataset, tmp_path: Path) -> None:
    x = digits.test[:6].numpy()
    np.save(tmp_path / "x.npy", x)
    for out in ("l.npy", "l.npz", "l.png"):
        result = run("interpolate", bundle, tmp_path / "x.npy", "--steps", 4, "--out", tmp_path / out)
        assert result.exit_code == 0, result.output
    expected = model.interpolate(x[::2], x[1::2], 4)
    np.testing.assert_array_equal(np.load(tmp_path / "l.npy"), expected)
    with np.load(tmp_path / "l.npz") as written:
        np.testing.assert_array_equal(written["loc_img"], expected)
    tiles = tiles_of(tmp_path / "l.png")
    assert tiles.shape == (3, 6, 8, 8)  # a pair a row: an end, four steps, the other end
    np.testing.assert_allclose(tiles[:, 0].reshape(3, 64), x[::2].reshape(3, 64), atol=0.003)
    np.testing.assert_allclose(tiles[:, -1].reshape(3, 64), x[1::2].reshape(3, 64), atol=0.003)
    np.testing.assert_allclose(tiles[:, 1:-1].reshape(3, 4, 64), expected, atol=0.003)


def test_interpolate_takes_two_pictures(bundle: Path, model: Model, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8), dtype=np.uint8)
    for name, image in zip("ab", pixels, strict=True):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    out = tmp_path / "l.npy"
    assert run("interpolate", bundle, tmp_path / "a.png", tmp_path / "b.png", "--out", out).exit_code == 0
    np.testing.assert_allclose(np.load(out), model.interpolate(pixels[:1], pixels[1:], 8), atol=1e-6)
    alone = run("interpolate", bundle, tmp_path / "a.png", "--out", out)
    assert alone.exit_code == 2
    assert "interpolate takes pairs, so an even number of rows, got 1" in alone.output


def test_both_rows_of_a_pair_need_the_same_label(tmp_path: Path) -> None:
    np.savez(tmp_path / "xy.npz", x=np.zeros((4, 784), np.uint8), y=[1, 1, 2, 3])
    refused = run("interpolate", CONDITIONAL, tmp_path / "xy.npz", "--out", tmp_path / "l.npy")
    assert refused.exit_code == 2
    assert "both rows of a pair must have the same label, got 2 and 3 for pair 1; give --y" in refused.output
    assert run("interpolate", CONDITIONAL, tmp_path / "xy.npz", "--y", 5, "--out", tmp_path / "l.npy").exit_code == 0
    x = np.zeros((2, 784), np.uint8)
    expected = load(CONDITIONAL, provider="cpu").interpolate(x, x, 8, y=5)
    np.testing.assert_array_equal(np.load(tmp_path / "l.npy"), expected)


def test_traverse_sets_one_dimension_after_the_other(
    bundle: Path, model: Model, digits: Dataset, tmp_path: Path
) -> None:
    x = digits.test[:70].numpy()
    np.save(tmp_path / "x.npy", x)
    for out in ("t.npy", "t.npz", "t.png"):
        options = ["--dim", 3, "--dim", 1, "--span", "-2,2", "--steps", 5, "--out", tmp_path / out]
        result = run("traverse", bundle, tmp_path / "x.npy", *options)
        assert result.exit_code == 0, result.output
    span = [-2, -1, 0, 1, 2]
    expected = np.stack([model.traverse(x, dim, span) for dim in (3, 1)], axis=1)
    np.testing.assert_allclose(np.load(tmp_path / "t.npy"), expected, atol=1e-6)
    with np.load(tmp_path / "t.npz") as written:
        np.testing.assert_allclose(written["loc_img"], expected, atol=1e-6)
        assert written["dims"].tolist() == [3, 1]
        assert written["span"].tolist() == span
    tiles = tiles_of(tmp_path / "t.png")
    assert tiles.shape == (16, 6, 8, 8)  # eight observations with two dimensions each
    np.testing.assert_allclose(tiles[1::2, 0].reshape(8, 64), x[:8].reshape(8, 64), atol=0.003)
    np.testing.assert_allclose(tiles[:, 1:].reshape(8, 2, 5, 64), expected[:8], atol=0.003)


def test_traverse_varies_the_active_units_by_default(
    bundle: Path, model: Model, digits: Dataset, tmp_path: Path
) -> None:
    x = digits.test[:50].numpy()
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "one.npy", x[:1])
    np.save(tmp_path / "same.npy", x[[0, 0]])
    out = tmp_path / "t.npy"
    found = json.loads(run("traverse", bundle, tmp_path / "x.npy", "--out", out, "--json").stdout)
    assert found["dims"] == np.flatnonzero(model.active_units(x)).tolist()
    found = json.loads(run("traverse", CONDITIONAL, reference_row(tmp_path), "--y", 3, "--out", out, "--json").stdout)
    with np.load(tmp_path / "row.npz") as row:
        z_scale = load(CONDITIONAL, provider="cpu").encode(row["x"], y=3).z_scale[0]
    assert len(found["dims"]) == 8
    assert z_scale[found["dims"]].max() <= np.sort(z_scale)[7]
    refused = run("traverse", bundle, tmp_path / "same.npy", "--out", out)
    assert refused.exit_code == 2
    assert "no dimension of the posterior mean varies over these rows; choose one with --dim" in refused.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dim", "5"], "dim must be from 0 to 4, got 5"),
        (["--dim", "0", "--span", "3"], "--span must be two numbers with a comma between, like -3,3, got '3'"),
        (["--dim", "0", "--span", "0,inf"], "--span must be finite"),
        (["--dim", "0", "--steps", "1"], "Invalid value for '--steps'"),
    ],
)
def test_wrong_options_of_traverse_are_refused(bundle: Path, tmp_path: Path, options: list[str], message: str) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 64), np.uint8))
    result = run("traverse", bundle, tmp_path / "x.npy", *options, "--out", tmp_path / "t.npy")
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "t.npy").exists()


def tiles_of(path: Path) -> NDArray[np.float64]:
    """The images of a grid of digits, shape `(rows, columns, 8, 8)`, in [0, 1]."""
    with Image.open(path) as image:
        pixels = np.asarray(image) / 255
    rows, columns = ((size - 7) // 63 for size in pixels.shape)
    tiles = pixels[7:, 7:].reshape(rows, 63, columns, 63).transpose(0, 2, 1, 3)
    return tiles[:, :, 3:56:7, 3:56:7]


def reference_row(folder: Path) -> Path:
    with np.load(CONDITIONAL / "reference.npz") as reference:
        np.savez(folder / "row.npz", x=reference["x"][:1])
    return folder / "row.npz"
