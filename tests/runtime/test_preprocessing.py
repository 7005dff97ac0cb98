"""What the runtime does to values as the training did, and what it says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from edgevae import BundleError, InputError, Manifest, ModelSpec, Preprocessing, values_text
from edgevae.images import read_image
from edgevae.inputs import Observations
from edgevae.train import Rows
from edgevae.train.data.sources import open_array, open_folder

REPOSITORY = Path(__file__).parents[2]
BUNDLES = sorted(path.parent.name for path in (REPOSITORY / "models").glob("*/manifest.json"))
IMAGES = ModelSpec(
    architecture="mlp",
    likelihood="bernoulli",
    latent="normal",
    data_shape=(3, 4, 5),
    z_dims=(2,),
    hidden_dim=4,
    num_classes=0,
    num_components=0,
    unit_interval=True,
)
ANY_RANGE = msgspec.structs.replace(IMAGES, unit_interval=False)


@pytest.mark.parametrize("name", BUNDLES)
def test_manifests_from_before_there_was_preprocessing_stay_as_they_are(name: str) -> None:
    content = (REPOSITORY / "models" / name / "manifest.json").read_bytes()
    manifest = Manifest.decode(content)
    assert manifest.preprocessing is None
    assert manifest.encode() == content


def test_preprocessing_and_class_names_survive_writing_and_reading() -> None:
    content = (REPOSITORY / "models" / "mnist-conditional" / "manifest.json").read_bytes()
    old = Manifest.decode(content)
    assert old.dataset is not None
    names = tuple("abcdefghij")
    done = Preprocessing(scale=(-1, 2.5), resize=(28, 28), grey=True)
    dataset = msgspec.structs.replace(old.dataset, class_names=names)
    new = msgspec.structs.replace(old, preprocessing=done, dataset=dataset)
    assert Manifest.decode(new.encode()) == new
    few = json.loads(new.encode())
    few["dataset"]["class_names"] = ["a", "b"]
    with pytest.raises(BundleError, match="class_names must name 10 classes, got 2"):
        Manifest.decode(json.dumps(few).encode())


@pytest.mark.parametrize("scale", [[1, 1], [2, 1], [0, 1e39], [1e9, 1e9 + 1], [0]])
def test_an_invalid_scale_is_refused(scale: list[float]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"scale": scale}, Preprocessing)


@pytest.mark.parametrize("scale", [(0.0, 16.0), (-1.0, 1.0), (0.1, 0.7), (1e6, 1e6 + 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8])
def test_scaling_is_that_of_the_training_bit_for_bit(scale: tuple[float, float], dtype: type) -> None:
    values: NDArray[Any] = np.linspace(max(scale[0], 0), max(scale[1], 1), 120).astype(dtype).reshape(2, 60)
    model = ANY_RANGE
    found = Observations(model, Preprocessing(scale=scale)).scaled(values)
    expected = Rows(torch.from_numpy(values), Preprocessing(scale))[:].numpy()
    np.testing.assert_array_equal(found, expected)


def test_raw_inverts_the_scale() -> None:
    spec = Preprocessing(scale=(-3.0, 22.5))
    unit = np.linspace(0, 1, 999, dtype=np.float32)
    raw = spec.raw(unit)
    assert (raw.min(), raw.max()) == (-3, 22.5)
    np.testing.assert_allclose(spec.scaled(raw), unit, atol=2e-7)
    np.testing.assert_array_equal(Preprocessing().raw(unit), unit)


def test_values_out_of_the_scale_are_refused_with_the_range() -> None:
    spec = Preprocessing(scale=(0.0, 16.0))
    for value in (-0.5, 17, np.inf):
        with pytest.raises(InputError, match=r"x must be in \[0, 16\], got .*; the model was fitted to values in"):
            Observations(IMAGES, spec).scaled(np.full((2, 60), value))
    with pytest.raises(InputError, match=r"x must be in \[0, 16\], got values from 255 to 255"):
        Observations(IMAGES, spec).scaled(np.full((2, 60), 255, np.uint8))
    with pytest.raises(InputError, match="x must not hold NaN, got NaN in row 0"):
        Observations(IMAGES, spec).scaled(np.full((2, 60), np.nan))
    with pytest.raises(InputError, match=r"x must be numbers in \[0, 16\], got dtype complex128"):
        Observations(IMAGES, spec).scaled(np.zeros((2, 60), complex))
    assert Observations(ANY_RANGE, spec).scaled(np.full((2, 60), 20.0)).max() == 1.25


def test_integers_need_a_scale_where_values_must_lie_in_0_and_1() -> None:
    ones = np.ones((2, 60), np.int64)
    with pytest.raises(InputError, match="got dtype int64"):
        Observations(IMAGES, None).scaled(ones)
    assert Observations(IMAGES, Preprocessing(scale=(0, 1))).scaled(ones).max() == 1
    assert Observations(IMAGES, Preprocessing(scale=(0, 1))).scaled(ones.astype(bool)).max() == 1
    assert Observations(ANY_RANGE, None).scaled(ones * 7).max() == 7
    assert Observations(ANY_RANGE, None).scaled(ones.astype(np.uint8)).max() == np.float32(1) / np.float32(255)


def test_uint8_are_numbers_where_the_model_was_fitted_to_numbers_without_a_scale(tmp_path: Path) -> None:
    numbers = np.linspace(0, 255, 120).astype(np.uint8).reshape(2, 60)
    for stored, divided in ((numbers.astype(np.float32), False), (numbers / np.float32(255), True), (numbers, True)):
        np.save(tmp_path / "data.npy", stored)
        preprocessing = open_array(tmp_path / "data.npy", None, labels=False).rows.preprocessing
        assert preprocessing.divide_uint8 == divided
        spec = Preprocessing(divide_uint8=preprocessing.divide_uint8)
        expected = numbers / np.float32(255) if divided else numbers.astype(np.float32)
        np.testing.assert_array_equal(Observations(ANY_RANGE, spec).scaled(numbers), expected)
    assert Preprocessing(divide_uint8=False).text == "uint8 are taken as numbers"


def test_channels_may_be_last_where_they_were_in_training() -> None:
    x = np.random.default_rng(0).random((2, 4, 5, 3), dtype=np.float32)
    expected = np.moveaxis(x, -1, 1).reshape(2, 60)
    spec = Preprocessing(channels_last=True)
    np.testing.assert_array_equal(Observations(IMAGES, spec).scaled(x), expected)
    np.testing.assert_array_equal(Observations(IMAGES, spec).scaled(np.moveaxis(x, -1, 1)), expected)
    with pytest.raises(InputError, match=r"x must have shape .* got \(2, 4, 5, 3\)"):
        Observations(IMAGES, None).scaled(x)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "I;16"])
@pytest.mark.parametrize("grey", [False, True])
def test_image_files_are_resized_as_in_training(tmp_path: Path, mode: str, grey: bool) -> None:
    rng = np.random.default_rng(0)
    if mode == "I;16":
        Image.fromarray(rng.integers(0, 65536, (11, 9), dtype=np.uint16)).save(tmp_path / "a.png")
    else:
        Image.fromarray(rng.integers(0, 256, (11, 9, 3), dtype=np.uint8)).convert(mode).save(tmp_path / "a.png")
    rows = open_folder(tmp_path, (4, 5), grey, labels=False).rows
    found = read_image(tmp_path / "a.png", tuple(rows.shape[1:]), resize=True)
    assert found.shape == rows.shape[1:]
    values = found / np.float32(255) if found.dtype == np.uint8 else found
    np.testing.assert_array_equal(values, rows[:][0].numpy())


def test_preprocessing_is_described_in_words() -> None:
    spec = Preprocessing(scale=(0, 16), resize=(4, 5), grey=True, channels_last=True)
    assert spec.text == (
        "values from 0 to 16 become 0 to 1, image files are made grey, image files are resized to 4 high, 5 wide, "
        "images may have their channels last"
    )
    assert Preprocessing().text == ""
    assert values_text(IMAGES, spec) == "numbers in [0, 16]"
    assert values_text(IMAGES, None) == "float in [0, 1] or uint8"
    assert values_text(ANY_RANGE, Preprocessing(grey=True)) == "float or uint8"
