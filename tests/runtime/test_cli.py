"""`vae-run` as a person calls it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from runtime import MANIFEST_FILE, Model
from runtime._cli import main
from train import Dataset


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
