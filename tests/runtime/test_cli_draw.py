"""What `vae-run` draws from the latent."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image

from edgevae import Model, load
from edgevae.cli import main
from edgevae.export import Source, export_bundle
from edgevae.train import VAE, Dataset, ModelConfig, load_dataset

REPOSITORY = Path(__file__).parents[2]
CONDITIONAL = REPOSITORY / "models" / "mnist-conditional"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_generate_writes_numbers_and_pictures(bundle: Path, model: Model, tmp_path: Path) -> None:
    for out in ("g.npz", "g.npy"):
        assert run("generate", bundle, "-n", 6, "--seed", 2, "--out", tmp_path / out).exit_code == 0
    with np.load(tmp_path / "g.npz") as written:
        np.testing.assert_array_equal(written["loc_img"], model.generate(6, seed=2))
    np.testing.assert_array_equal(np.load(tmp_path / "g.npy"), model.generate(6, seed=2))
    assert run("generate", bundle, "-n", 6, "--out", tmp_path / "g.png").exit_code == 0
    with Image.open(tmp_path / "g.png") as image:
        assert image.size == (6 * 63 + 7, 63 + 7)


@pytest.fixture(scope="module")
def labelled_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conditional model with a mixture, untrained."""
    digits = load_dataset("digits", labels=True)
    vae = VAE(ModelConfig((1, 8, 8), 3, 8, latent="mixture", components=4, num_classes=10)).eval()
    out = tmp_path_factory.mktemp("models") / "labelled"
    export_bundle(Source("labelled", vae, digits.test, "test images of digits", None, digits.test_labels), out)
    return out


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
    assert "takes pairs, an even number of rows, got 1" in alone.output


def test_the_ends_of_a_pair_have_one_label(tmp_path: Path) -> None:
    np.savez(tmp_path / "xy.npz", x=np.zeros((4, 784), np.uint8), y=[1, 1, 2, 3])
    refused = run("interpolate", CONDITIONAL, tmp_path / "xy.npz", "--out", tmp_path / "l.npy")
    assert refused.exit_code == 2
    assert "the ends of a pair need one label, got 2 and 3 for pair 1; give --y" in refused.output
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


def test_traverse_takes_the_dimensions_that_tell_something(
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
    assert "do not vary in any dimension; give --dim" in refused.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dim", "5"], "dim must be from 0 to 4, got 5"),
        (["--dim", "0", "--span", "3"], "--span must be two numbers with a comma between, like -3,3, got '3'"),
        (["--dim", "0", "--span", "0,inf"], "--span must be finite"),
        (["--dim", "0", "--steps", "1"], "Invalid value for '--steps'"),
    ],
)
def test_a_traversal_that_cannot_be_is_exit_code_2(
    bundle: Path, tmp_path: Path, options: list[str], message: str
) -> None:
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
