"""`vae-run` as a person calls it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from edgevae import MANIFEST_FILE, Model, load
from edgevae.cli import main
from edgevae.train import Dataset

MODELS = Path(__file__).parents[2] / "models"
CONDITIONAL = MODELS / "mnist-conditional"


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


def test_encode_writes_what_the_files_name_says(bundle: Path, model: Model, digits: Dataset, tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "{tmp}"], "is not a bundle"),
        (["generate", "{bundle}", "--out", "{tmp}/g.gif"], "must end in .png, .npy or .npz, got"),
        (["generate", "{bundle}", "--out", "{tmp}/none/g.png"], "none is not there; make it first"),
        (["encode", "{bundle}", "{tmp}/bad.npy", "--out", "{tmp}/z.npz"], "begins with b'nonsen'"),
        (["encode", "{bundle}", "{tmp}/short.npy", "--out", "{tmp}/z.npz"], "short.npy: cannot be read"),
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
    (tmp_path / "short.npy").write_bytes(b"\x93NUMPY\x01\0v")
    np.savez(tmp_path / "empty.npz", y=np.zeros(3))
    np.save(tmp_path / "wrong.npy", np.zeros((3, 7)))
    np.save(tmp_path / "turned.npy", np.zeros((64, 4)))
    np.savez(tmp_path / "objects.npz", x=np.array([None, {}], dtype=object))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "empty.npz").read_bytes()[:-30])
    result = run(*(argument.format(bundle=bundle, tmp=tmp_path) for argument in arguments))
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


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


def test_encode_writes_what_a_mixture_and_a_hierarchy_have_more(tmp_path: Path) -> None:
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
