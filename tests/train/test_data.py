"""Data sets: what each kind of file becomes, what is refused, the range of values, the split."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import os
import struct
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from edgevae.train import (
    LIKELIHOODS,
    VAE,
    ConfigError,
    DataConfig,
    Dataset,
    DatasetError,
    DatasetInfo,
    Images,
    ModelConfig,
    Preprocessing,
    Rows,
    Trainer,
    TrainingConfig,
    binarize,
    binarize_once,
    check_range,
    load_data,
    load_dataset,
    run_config,
    standardisation_of,
)
from edgevae.train.data import rows
from edgevae.train.data.loading import open_source
from edgevae.train.data.sources import Source, open_array, open_folder
from edgevae.train.run import config_of
from edgevae.train.trainer import Step

# Files


RNG = np.random.default_rng(0)


def whole(config: DataConfig) -> torch.Tensor:
    """All rows, in their order in the file."""
    return opened(config).rows[:]


def opened(config: DataConfig, *, labels: bool = False) -> Source:
    assert config.data is not None
    return open_source(config.data, config, labels)


def save_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def save_images(folder: Path, images: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:03}.png")


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x-images-idx3-ubyte", "x-images-idx3-ubyte.gz", "x.idx"])
def test_uint8_images_come_out_of_every_file_divided_by_255(tmp_path: Path, name: str) -> None:
    images = RNG.integers(0, 256, (20, 6, 5), dtype=np.uint8)
    path = tmp_path / name
    if name == "x.npy":
        np.save(path, images)
    elif name == "x.npz":
        np.savez(path, x=images)
    else:
        save_idx(path, images)
    rows = whole(DataConfig(data=path))
    assert rows.dtype == torch.float32
    np.testing.assert_array_equal(rows.numpy(), (images.astype(np.float32) / np.float32(255))[:, None])


def test_every_uint8_is_the_float_that_numpy_makes_of_it(tmp_path: Path) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.save(tmp_path / "x.npy", values)
    np.testing.assert_array_equal(
        whole(DataConfig(data=tmp_path / "x.npy")).numpy(), values.astype(np.float32) / np.float32(255)
    )


@pytest.mark.parametrize(
    ("shape", "data_shape", "channels_last"),
    [
        ((20, 7), (7,), False),
        ((20, 6, 5), (1, 6, 5), False),
        ((20, 3, 6, 5), (3, 6, 5), False),
        ((20, 1, 6, 5), (1, 6, 5), False),
        ((20, 6, 5, 3), (3, 6, 5), True),
        ((20, 6, 5, 1), (1, 6, 5), True),
    ],
)
def test_the_channel_axis_of_arrays_is_recognised(
    tmp_path: Path, shape: tuple[int, ...], data_shape: tuple[int, ...], channels_last: bool
) -> None:
    array = RNG.random(shape, dtype=np.float32)
    np.save(tmp_path / "x.npy", array)
    dataset = load_data(DataConfig(data=tmp_path / "x.npy"), labels=False)
    assert dataset.data_shape == data_shape
    assert dataset.preprocessing.channels_last == channels_last
    expected = np.moveaxis(array, -1, 1) if channels_last else array.reshape(20, *data_shape)
    np.testing.assert_array_equal(whole(DataConfig(data=tmp_path / "x.npy")).numpy(), expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, np.int64, np.uint16, np.uint32, np.uint64, bool])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numbers_other_than_uint8_are_read_unchanged(tmp_path: Path, dtype: type, order: str) -> None:
    array = np.asarray(RNG.integers(0, 100, (20, 7)), dtype=dtype, order=order)  # type: ignore[call-overload]  # an order from the parameters
    np.save(tmp_path / "x.npy", array)
    dataset = load_data(DataConfig(data=tmp_path / "x.npy"), labels=False)
    np.testing.assert_array_equal(whole(DataConfig(data=tmp_path / "x.npy")).numpy(), array.astype(np.float32))
    assert dataset.train[torch.tensor([3, 0])].shape == (2, 7)


def test_a_scale_makes_its_ends_0_and_1(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[-2, 0, 6], [6, 2, -2]], np.int16))
    rows = whole(DataConfig(data=tmp_path / "x.npy", scale=(-2, 6)))
    assert rows.tolist() == [[0, 0.25, 1], [1, 0.5, 0]]
    np.save(tmp_path / "b.npy", np.array([[0, 1], [1, 0]], np.uint8))
    assert whole(DataConfig(data=tmp_path / "b.npy", scale=(0, 1))).tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("scale", [(0.1, 0.7), (-1e-3, 3.3), (1e6, 1e6 + 0.5)])
def test_nothing_within_a_scale_leaves_0_and_1(tmp_path: Path, scale: tuple[float, float]) -> None:
    array = np.linspace(*scale, 9999).reshape(-1, 11)
    np.save(tmp_path / "x.npy", array)
    rows = whole(DataConfig(data=tmp_path / "x.npy", scale=scale))
    assert (float(rows.min()), float(rows.max())) == (0, 1)


def test_npy_files_are_mapped_and_never_written_to(tmp_path: Path) -> None:
    array = RNG.random((50, 7), dtype=np.float32)
    np.save(tmp_path / "x.npy", array)
    dataset = load_data(DataConfig(data=tmp_path / "x.npy"), labels=False)
    source = opened(DataConfig(data=tmp_path / "x.npy"))
    for some in (source.rows[:5], source.rows[torch.arange(5)], dataset.train[:5]):
        some.zero_()
    np.testing.assert_array_equal(source.rows[:].numpy(), array)
    written = np.load(tmp_path / "x.npy", mmap_mode="r+")
    written[0, 0] = 0.125  # what is changed in the file is seen: no copy was made
    written.flush()
    assert float(source.rows[:1][0, 0]) == 0.125


def test_a_folder_of_grey_images_has_one_channel(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (12, 6, 5), dtype=np.uint8)
    save_images(tmp_path / "grey", images)
    (tmp_path / "grey" / ".hidden").write_text("not looked at")
    source = opened(DataConfig(data=tmp_path / "grey"))
    np.testing.assert_array_equal(source.rows[:].numpy(), (images / np.float32(255))[:, None])
    assert source.labels is None


def test_class_folders_number_their_images(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)
    for name, part in zip(("cat", "ape", "dog"), np.split(images, 3), strict=True):
        save_images(tmp_path / "pets" / name, part)
    source = opened(DataConfig(data=tmp_path / "pets"), labels=True)
    assert source.class_names == ("ape", "cat", "dog")
    assert source.labels is not None
    assert source.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    expected = images[[*range(4, 8), *range(4), *range(8, 12)]].transpose(0, 3, 1, 2) / np.float32(255)
    np.testing.assert_array_equal(source.rows[:].numpy(), expected)
    unlabelled = load_data(DataConfig(data=tmp_path / "pets"), labels=False)
    assert (unlabelled.class_names, unlabelled.train_labels) == ((), None)


def test_class_folders_with_numbers_for_names_are_in_their_order(tmp_path: Path) -> None:
    for name in ("10", "9", "2"):
        save_images(tmp_path / name, RNG.integers(0, 256, (2, 4, 4), dtype=np.uint8))
    assert opened(DataConfig(data=tmp_path), labels=True).class_names == ("2", "9", "10")


def test_grey_images_among_coloured_ones_have_three_equal_channels(tmp_path: Path) -> None:
    save_images(tmp_path, RNG.integers(0, 256, (3, 6, 5, 3), dtype=np.uint8))
    Image.fromarray(RNG.integers(0, 256, (6, 5), dtype=np.uint8)).save(tmp_path / "z.png")
    rows = whole(DataConfig(data=tmp_path))
    assert rows.shape == (4, 3, 6, 5)
    assert torch.equal(rows[3, 0], rows[3, 2])
    assert not torch.equal(rows[2, 0], rows[2, 2])


def test_images_are_made_grey_and_resized_as_pillow_does(tmp_path: Path) -> None:
    photos = [RNG.integers(0, 256, (size, 20, 3), dtype=np.uint8) for size in (9, 30)]
    for number, photo in enumerate(photos):
        Image.fromarray(photo).save(tmp_path / f"{number}.png")
    rows = whole(DataConfig(data=tmp_path, resize=(8, 6), grey=True))
    assert rows.shape == (2, 1, 8, 6)
    for row, photo in zip(rows, photos, strict=True):
        expected = Image.fromarray(photo).convert("L").resize((6, 8), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(row[0].numpy(), np.asarray(expected) / np.float32(255))


def test_sixteen_bits_keep_their_depth(tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(deep).save(tmp_path / "a.png")
    Image.fromarray(np.full((8, 8), 51, np.uint8)).save(tmp_path / "b.png")
    rows = whole(DataConfig(data=tmp_path))
    np.testing.assert_allclose(rows[0, 0].numpy(), deep / 65535, atol=1e-7)
    np.testing.assert_allclose(rows[1].numpy(), 0.2, atol=1e-7)


@pytest.mark.parametrize("kind", ["npz", "npy", "idx"])
def test_labels_come_with_their_rows(tmp_path: Path, kind: str) -> None:
    images, y = RNG.integers(0, 256, (200, 4, 4), dtype=np.uint8), np.arange(200) % 7
    images[:, 0, 0] = y
    if kind == "npz":
        path = tmp_path / "x.npz"
        np.savez(path, x=images, y=y.astype(np.uint8))
    elif kind == "npy":
        path = tmp_path / "x.npy"
        np.save(path, images)
        np.save(tmp_path / "x-labels.npy", y)
    else:
        path = tmp_path / "train-images-idx3-ubyte.gz"
        save_idx(path, images)
        save_idx(tmp_path / "train-labels-idx1-ubyte", y)
    dataset = load_data(DataConfig(data=path, validation_fraction=0.2), labels=True)
    assert dataset.num_classes == 7
    assert dataset.validation is not None
    parts: list[tuple[Images, torch.Tensor | None]] = [
        (dataset.train, dataset.train_labels),
        (dataset.validation, dataset.validation_labels),
        (dataset.test, dataset.test_labels),
    ]
    for part, labels in parts:
        assert labels is not None
        assert labels.dtype == torch.int64
        np.testing.assert_allclose(part[:][:, 0, 0, 0].numpy() * 255, labels.numpy(), atol=1e-5)


def test_a_data_set_is_named_by_its_file_or_folder(tmp_path: Path) -> None:
    np.savez(tmp_path / "flowers.v2.npz", x=RNG.random((20, 3)))
    assert load_data(DataConfig(data=tmp_path / "flowers.v2.npz"), labels=False).name == "flowers.v2"


def test_rows_go_to_a_device_as_they_are_stored(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", RNG.integers(0, 256, (20, 6, 5, 3), dtype=np.uint8))
    dataset = load_data(DataConfig(data=tmp_path / "x.npy"), labels=False)
    assert isinstance(dataset.train, Rows)
    assert dataset.to(torch.device("cpu")).train is dataset.train
    moved = dataset.to(torch.device("meta")).train
    assert isinstance(moved, Rows)
    assert (moved.device.type, moved.dtype, moved.shape) == ("meta", torch.uint8, dataset.train.shape)


# Files that cannot be trained on


X = np.zeros((20, 6, 5), np.float32)


def save(path: Path, content: np.ndarray, **others: np.ndarray) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **{"x": content, **others})  # type: ignore[arg-type]  # arrays by name; savez has an option too
    else:
        np.save(path, content)
    return path


def images(folder: Path, count: int = 3, size: tuple[int, int] = (6, 5)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("L", size).save(folder / f"{number}.png")
    return folder


def refused(path: Path, message: str, *, labels: bool = False, **options: object) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        load_data(DataConfig(data=path, **options), labels=labels)  # type: ignore[arg-type]  # options from the parameters
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("at_once", [2**22, 31])
def test_the_first_row_with_a_nan_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, at_once: int
) -> None:
    monkeypatch.setattr(rows, "VALUES_AT_ONCE", at_once)
    x = X.astype(np.float64)
    x[17, 3, 2] = x[19, 0, 0] = value
    refused(save(tmp_path / "x.npy", x), r"x\.npy: row 17 \(counted from 0\) holds NaN, infinity, or a number")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(20), r"must hold rows \(n, features\) or images .*, got shape \(20,\)"),
        (np.zeros(()), r"got shape \(\)"),
        (np.zeros((0, 4)), r"got shape \(0, 4\)|cannot be read"),
        (np.zeros((2, 3, 4, 5, 6)), r"got shape \(2, 3, 4, 5, 6\)"),
        (np.zeros((9, 3, 8, 3)), "both axis 1 and axis 3 could be the channels; save grey images as"),
        (np.zeros((9, 2, 8, 8)), "neither axis 1 nor axis 3 is one of the channels"),
        (np.zeros((9, 4), complex), "must hold numbers .* got dtype <c16"),
        (np.zeros((9, 4), ">f4"), "in this machine's byte order .* got dtype >f4"),
        (np.full((9, 4), "a"), "must hold numbers .* got dtype <U1"),
        (np.full((9, 4), None), "holds Python objects, .*which could run any code"),
    ],
)
@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_arrays_that_hold_no_observations_are_refused(
    tmp_path: Path, array: np.ndarray, message: str, name: str
) -> None:
    refused(save(tmp_path / name, array), message)


def test_unreadable_missing_and_unknown_files_are_refused(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.npy", X)
    (tmp_path / "short.npy").write_bytes(whole.read_bytes()[:-9])
    (tmp_path / "text.npy").write_text("text")
    (tmp_path / "text.npz").write_text("text")
    (tmp_path / "really.npz").write_bytes(whole.read_bytes())
    (tmp_path / "x.csv").write_text("1,2")
    np.savez(tmp_path / "other.npz", images=X)
    refused(tmp_path / "short.npy", "cannot be read: .*; save it again")
    refused(tmp_path / "text.npy", "cannot be read: it is named .npy but begins with")
    refused(tmp_path / "text.npz", "it is named .npz but begins with")
    refused(tmp_path / "really.npz", "is a .npy file by its content")
    refused(tmp_path / "x.csv", "is of no known kind; expected .npy, .npz, IDX")
    refused(tmp_path / "none.npy", "is not there; give a file or a folder of images")
    refused(tmp_path / "other.npz", r"must hold an array x, got images; save it with np\.savez")


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (None, "must hold labels, an array y, got x"),
        (np.zeros(19, int), r"a label for each of 20 rows, got labels of shape \(19,\)"),
        (np.zeros((20, 1), int), r"got labels of shape \(20, 1\)"),
        (
            np.array([0.0] * 18 + [1.5, 2.5]),
            r"labels must be integers, got 1\.5 in row 18 \(counted from 0\), dtype",
        ),
        (np.array([0.0] * 19 + [np.nan]), "labels must be integers, got nan in row 19"),
        (np.zeros(20), r"labels must be integers, got 0\.0 in row 0 .* with y\.astype\(int\)"),
        (np.full(20, "cat"), "labels must be integers, got cat in row 0"),
        (np.array([0] * 13 + [-1] * 7), "labels must not be negative, got -1 in row 13"),
        (np.array([0, 2] * 10), "has no training row of class 1; classes are numbered from 0 to 2"),
        (np.array([0, 10**12] * 10), "has no training row of class 1;"),
        (np.array([1, 2] * 10), "has no training row of class 0"),
    ],
)
def test_invalid_labels_are_refused(tmp_path: Path, y: np.ndarray | None, message: str) -> None:
    refused(save(tmp_path / "x.npz", X, **({} if y is None else {"y": y})), message, labels=True)


def test_missing_label_files_are_named(tmp_path: Path) -> None:
    refused(save(tmp_path / "x.npy", X), "has no labels beside it: expected x-labels.npy; or give a .npz", labels=True)
    for name in ("train-images-idx3-ubyte", "x.idx"):
        (tmp_path / name).write_bytes(b"\0\0\x08\x03" + bytes([0, 0, 0, 4] * 3) + bytes(64))
    refused(tmp_path / "train-images-idx3-ubyte", "no labels beside it: expected train-labels-idx1-ubyte", labels=True)
    refused(tmp_path / "x.idx", "must have images-idx3 in its name", labels=True)


def test_folders_that_hold_no_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    refused(tmp_path / "pets", "pets is an empty folder")
    images(tmp_path / "pets" / "cat")
    (tmp_path / "pets" / "dog").mkdir()
    refused(tmp_path / "pets", r"dog is an empty class; put images into it")
    images(tmp_path / "pets" / "dog" / "deep")
    refused(tmp_path / "pets", r"deep is a folder within a class")
    (tmp_path / "pets" / "notes.txt").touch()
    refused(tmp_path / "pets", r"holds folders and also notes\.txt")
    (images(tmp_path / "plain") / "notes.txt").touch()
    refused(tmp_path / "plain", r"notes\.txt is no image by its name")
    refused(images(tmp_path / "flat"), "must hold a folder for each class, got images only", labels=True)


def test_an_image_of_another_size_is_named_with_the_way_out(tmp_path: Path) -> None:
    images(tmp_path / "x")
    Image.new("L", (7, 5)).save(tmp_path / "x" / "9.png")
    refused(tmp_path / "x", r"9\.png is 5 high and 7 wide, and 0\.png 5 by 6; give --resize H,W, like --resize 5,6")
    assert load_data(DataConfig(data=tmp_path / "x", resize=(5, 6)), labels=False).data_shape == (1, 5, 6)


def test_damaged_images_and_other_files_are_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    Image.fromarray(noise).save(images(tmp_path / "x", size=(40, 40)) / "5.png")
    whole = (tmp_path / "x" / "5.png").read_bytes()
    for content in (b"text", whole[:20], whole[:700], whole[:600] + bytes(50) + whole[650:]):
        (tmp_path / "x" / "5.png").write_bytes(content)
        refused(tmp_path / "x", r"5\.png: the image cannot be read: ")


@pytest.mark.parametrize(("mode", "message"), [("RGBA", "is transp"), ("LA", "is transparent"), ("F", "has mode F")])
def test_images_with_ambiguous_values_are_refused(tmp_path: Path, mode: str, message: str) -> None:
    Image.new(mode, (6, 5)).save(images(tmp_path / "x") / "5.tiff")
    refused(tmp_path / "x", rf"5\.tiff: the image {message}")


def test_multi_image_files_and_16_bit_grey_among_colours_are_refused(tmp_path: Path) -> None:
    frames = [Image.new("L", (6, 5), grey) for grey in (0, 255)]
    frames[0].save(images(tmp_path / "x") / "5.gif", save_all=True, append_images=frames[1:])
    refused(tmp_path / "x", r"5\.gif: the file holds 2 images")
    Image.fromarray(np.zeros((5, 6), np.uint16)).save(images(tmp_path / "y") / "5.png")
    Image.new("RGB", (6, 5)).save(tmp_path / "y" / "6.png")
    refused(tmp_path / "y", r"5\.png is grey with 16 bits, and others have colours; give --grey")
    assert load_data(DataConfig(data=tmp_path / "y", grey=True), labels=False).data_shape == (1, 5, 6)


def test_preprocessing_options_must_fit_the_kind_of_data(tmp_path: Path) -> None:
    refused(images(tmp_path / "x"), "scale goes with arrays", scale=(0, 16))
    refused(save(tmp_path / "x.npy", X), "resize goes with a folder of image files", resize=(4, 4))
    refused(save(tmp_path / "x.npy", X), "grey goes with a folder of image files", grey=True)


def test_test_data_of_another_kind_are_refused(tmp_path: Path) -> None:
    here = save(tmp_path / "x.npy", X)
    refused(here, r"must have observations of shape \(1, 6, 5\) as", test_data=save(tmp_path / "t.npy", X[:, :5]))
    bytes_ = save(tmp_path / "b.npy", X.astype(np.uint8))
    refused(here, "b.npy holds uint8 and .*x.npy float32: only uint8 would be divided", test_data=bytes_)
    pets = tmp_path / "pets"
    for name in ("cat", "dog"):
        images(pets / name, 4)
    images(tmp_path / "more" / "emu")
    refused(pets, r"must have the classes of .*pets \(cat, dog\), got emu", labels=True, test_data=tmp_path / "more")


def test_classes_of_test_data_keep_their_numbers(tmp_path: Path) -> None:
    for name in ("ape", "cat", "dog"):
        images(tmp_path / "pets" / name, 4)
    images(tmp_path / "more" / "dog", 2)
    dataset = load_data(DataConfig(data=tmp_path / "pets", test_data=tmp_path / "more"), labels=True)
    assert dataset.test_labels is not None
    assert dataset.test_labels.tolist() == [2, 2]
    assert dataset.num_classes == 3


def test_a_class_without_a_training_image_is_named(tmp_path: Path) -> None:
    images(tmp_path / "pets" / "cat", 8)
    images(tmp_path / "pets" / "dog", 1)
    config = {"test_fraction": 0.5, "split_seed": 3}
    refused(tmp_path / "pets", r"no training row of class 1 \(dog\); .* \(another split seed\)", labels=True, **config)


@pytest.mark.parametrize("labels", [[0, 1, 2**64 - 1], [0, 1, 2**63]])
def test_labels_too_large_for_class_numbers_are_named(tmp_path: Path, labels: list[int]) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 4), np.float32), y=np.array(labels, np.uint64))
    with pytest.raises(DatasetError, match=f"labels must not be above {2**63 - 1}, got {labels[2]} in row 2"):
        open_array(tmp_path / "x.npz", None, labels=True)


@pytest.mark.parametrize("name", ["x", "y"])
def test_an_archive_member_that_is_not_an_array_is_refused(tmp_path: Path, name: str) -> None:
    whole = save(tmp_path / "whole.npz", np.zeros((3, 4), np.float32), y=np.zeros(3, np.int64))
    with zipfile.ZipFile(whole) as there, zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for file in ("x.npy", "y.npy"):
            archive.writestr(file, b"no array" if file == f"{name}.npy" else there.read(file))
    with pytest.raises(DatasetError, match=rf"cannot be read: '{name}\.npy' is no array"):
        open_array(tmp_path / "x.npz", None, labels=True)


@pytest.mark.parametrize("header", ["{'descr': '2(f4', 'fortran_order': False, 'shape': (3,)}", "(" * 3000, "{'a': '"])
def test_a_malformed_npy_header_is_refused(tmp_path: Path, header: str) -> None:
    text = header.encode().ljust(4000) + b"\n"
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(12))
    with pytest.raises(DatasetError, match=r"cannot be read: .*; save it again"):
        open_array(tmp_path / "x.npy", None, labels=False)


def test_a_postscript_program_among_images_is_refused(tmp_path: Path) -> None:
    for name, message in (("a.png", "the image cannot be read"), ("a.eps", "is no image by its name")):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n")
        with pytest.raises(DatasetError, match=message):
            open_folder(folder, None, grey=False, labels=False)


# Ranges and standardisation


def images_of(path: Path, array: np.ndarray, scale: tuple[float, float] | None = None) -> Images:
    np.save(path, array)
    return load_data(DataConfig(data=path, scale=scale), labels=False).train


@pytest.mark.parametrize(
    ("array", "scale", "message"),
    [
        (np.array([[0.0, 1.5]] * 9), None, r"must hold floats in \[0, 1\] or uint8 .* float64 values from 0 to 1.5"),
        (np.array([[0.0, 1.5]] * 9), None, "like --scale 0,1.5, or take --likelihood normal"),
        (np.array([[-0.1, 1.0]] * 9), None, "values from -0.1 to 1"),
        (np.array([[0, 1]] * 9), None, "got int64 values from 0 to 1; say with --scale"),
        (np.array([[0, 17]] * 9), (0, 16), r"values in \[0, 16\], as --scale says, got int64 values from 0 to 17"),
        (np.array([[-1, 1]] * 9), (0, 16), "give --scale -1,1"),
        (np.array([[0, 17]] * 9, np.uint8), (0, 16), "got uint8 values from 0 to 17"),
    ],
)
def test_values_out_of_a_likelihoods_range_are_refused_with_the_ways_out(
    tmp_path: Path, array: np.ndarray, scale: tuple[float, float] | None, message: str
) -> None:
    images = images_of(tmp_path / "x.npy", array, scale)
    with pytest.raises(DatasetError, match=rf"x\.npy .*{message}"):
        check_range(images, True)
    check_range(images, False)


@pytest.mark.parametrize(
    ("array", "scale"),
    [
        (np.array([[0.0, 1.0]] * 9), None),
        (np.array([[0, 255]] * 9, np.uint8), None),
        (np.array([[0, 16]] * 9), (0, 16)),
        (np.array([[0.1, 0.7]] * 9), (0.1, 0.7)),
    ],
)
def test_values_in_range_are_taken(tmp_path: Path, array: np.ndarray, scale: tuple[float, float] | None) -> None:
    check_range(images_of(tmp_path / "x.npy", array, scale), True)


@pytest.mark.parametrize("scale", [None, (0, 1)])
def test_another_likelihood_is_a_way_out_only_before_the_training(
    tmp_path: Path, scale: tuple[float, float] | None
) -> None:
    table = np.full((20, 2), 1.5, np.float32)
    for images in (images_of(tmp_path / "x.npy", table, scale), torch.from_numpy(table)):
        with pytest.raises(DatasetError, match="take --likelihood normal"):
            check_range(images, True)
        with pytest.raises(DatasetError) as error:
            check_range(images, True, trained=True)
        assert "--likelihood" not in str(error.value)


def test_a_value_out_of_range_is_named_by_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "VALUES_AT_ONCE", 6)
    table = np.full((90, 2), 0.5, np.float32)
    table[77, 1] = 1.5
    with pytest.raises(DatasetError, match=r"values from 0\.5 to 1\.5, first in row 77 \(counted from 0\)"):
        check_range(images_of(tmp_path / "x.npy", table), True)
    with pytest.raises(DatasetError, match=r"as --scale says, got float32 values from 0\.5 to 1\.5, first in row 77"):
        check_range(images_of(tmp_path / "x.npy", table, (0, 1)), True)


def test_the_range_of_tensors_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "VALUES_AT_ONCE", 6)
    images = torch.zeros(10, 3)
    check_range(images, True)
    images[8, 1], images[1, 1] = 1.5, -0.5
    with pytest.raises(DatasetError, match=r"in \[0, 1\] .*, got values from -0.5 to 1.5, first in row 1 "):
        check_range(images, True)


@pytest.mark.parametrize("row", [0, 9])
def test_a_tensor_with_nan_is_refused_by_its_row(monkeypatch: pytest.MonkeyPatch, row: int) -> None:
    monkeypatch.setattr(rows, "VALUES_AT_ONCE", 6)
    images = torch.zeros(10, 3)
    images[row, 1] = torch.nan
    with pytest.raises(DatasetError, match=f"got values from nan to nan, first in row {row} "):
        check_range(images, True)


@pytest.mark.parametrize("at_once", [2**22, 20])
def test_mean_and_scale_are_those_of_numpy_however_the_data_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(rows, "VALUES_AT_ONCE", at_once)
    table = np.random.default_rng(0).normal([1e4, 0, -3], [1, 1e-3, 50], (101, 3)).astype(np.float32)
    images = images_of(tmp_path / "x.npy", table)
    kept = images[:].numpy().astype(np.float64)
    loc, scale = standardisation_of(images, per_feature=True)
    np.testing.assert_allclose(loc, kept.mean(0), rtol=1e-12)
    np.testing.assert_allclose(scale, kept.std(0, ddof=1), rtol=1e-9)
    loc, scale = standardisation_of(images)
    assert loc == pytest.approx(kept.mean(), rel=1e-12)
    assert scale == pytest.approx(kept.std(ddof=1), rel=1e-12)


def test_a_constant_feature_has_scale_1() -> None:
    table = torch.tensor([[0.1, 1.0], [0.1, 2.0], [0.1, 3.0]])
    loc, scale = standardisation_of(table, per_feature=True)
    assert isinstance(scale, tuple)
    assert isinstance(loc, tuple)
    assert scale == (1.0, 1.0)
    assert loc == pytest.approx((0.1, 2.0))
    assert list(standardisation_of(torch.full((5, 2), 0.3))) == [pytest.approx(0.3), 1.0]
    assert standardisation_of(torch.ones(1, 2), per_feature=True) == ((1.0, 1.0), (1.0, 1.0))


def test_each_feature_is_standardised_and_comes_out_in_its_own_units() -> None:
    loc, scale = (100.0, -5.0, 0.0), (20.0, 0.01, 1.0)
    own, one = (
        ModelConfig((3,), 2, 4, likelihood="normal", data_loc=loc, data_scale=scale),
        ModelConfig((3,), 2, 4, likelihood="normal"),
    )
    torch.manual_seed(0)
    vae, plain = VAE(own), VAE(one)
    assert vae.state_dict().keys() == plain.state_dict().keys()  # what standardises is no weight
    plain.load_state_dict(vae.state_dict())
    x, z = torch.randn(7, 3), torch.randn(7, 2)
    raw = torch.tensor(loc) + torch.tensor(scale) * x
    for found, expected in zip(vae.encoder(raw), plain.encoder(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    found, expected = (each.decoder.likelihood.distribution(each.decoder.outputs_at(z)) for each in (vae, plain))
    torch.testing.assert_close(found.loc, torch.tensor(loc) + torch.tensor(scale) * expected.loc)
    torch.testing.assert_close(found.scale, torch.tensor(scale) * expected.scale)


@pytest.mark.parametrize(
    ("loc", "scale", "message"),
    [
        ((0.0, 1.0), 1.0, "data_loc must be one number or one for each of 3 values, got 2"),
        (0.0, (1.0,) * 4, "data_scale must be one number or one for each of 3 values, got 4"),
        (0.0, (1.0, 0.0, 1.0), "data_scale positive, got 1.0 and 0.0"),
        ((0.0, float("nan"), 0.0), 1.0, "data_loc must be finite"),
    ],
)
def test_constants_that_do_not_fit_are_refused(loc: object, scale: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig((3,), likelihood="normal", data_loc=loc, data_scale=scale)  # type: ignore[arg-type]  # ends of any kind, which is what is tested


@pytest.mark.parametrize(("loc", "scale"), [(0.25, 2.0), ((1.0, 2.5), (3.0, 4.0))])
def test_configurations_come_back_from_json(loc: object, scale: object) -> None:
    model = ModelConfig((2,), likelihood="normal", data_loc=loc, data_scale=scale)  # type: ignore[arg-type]  # likewise
    info = DatasetInfo("x", 9, 1, preprocessing=Preprocessing((-1, 1), channels_last=True), class_names=("a", "b"))
    config = run_config(model, TrainingConfig(), info)
    content = msgspec.json.decode(msgspec.json.encode(dataclasses.asdict(config)))
    assert config_of(content) == config
    del content["dataset"]["preprocessing"], content["dataset"]["class_names"], content["model"]["data_loc"]
    older = config_of(content)
    assert older.dataset.preprocessing == Preprocessing()
    assert dataclasses.asdict(older.model)["data_loc"] == 0.0


def test_every_likelihood_says_whether_it_needs_a_range() -> None:
    assert {name for name, kind in LIKELIHOODS.items() if not kind.unit_interval} == {"normal"}


# The split into training, validation and test data


def numbered(path: Path, count: int, first: int = 0) -> Path:
    np.save(path, np.arange(first, first + count, dtype=np.float32)[:, None].repeat(3, axis=1))
    return path


def rows_of(images: Images | None) -> list[int]:
    return [] if images is None else images[:][:, 0].int().tolist()


@pytest.mark.parametrize(
    ("count", "validation", "sizes"), [(100, 0.0, (90, 0, 10)), (100, 0.25, (65, 25, 10)), (3, 0.1, (1, 1, 1))]
)
def test_the_parts_of_a_split_are_disjoint_and_complete(
    tmp_path: Path, count: int, validation: float, sizes: tuple[int, int, int]
) -> None:
    config = DataConfig(data=numbered(tmp_path / "x.npy", count), validation_fraction=validation)
    dataset = load_data(config, labels=False)
    parts = [rows_of(part) for part in (dataset.train, dataset.validation, dataset.test)]
    assert tuple(map(len, parts)) == sizes
    assert sorted(itertools.chain(*parts)) == list(range(count))
    assert all(part == sorted(part) for part in parts)


def test_the_split_depends_on_its_seed_alone(tmp_path: Path) -> None:
    path = numbered(tmp_path / "x.npy", 100)
    configs = [DataConfig(data=path, split_seed=seed) for seed in (0, 0, 1)]
    first, again, other = (rows_of(load_data(config, labels=False).test) for config in configs)
    assert first == again != other
    more = load_data(DataConfig(data=path, validation_fraction=0.2), labels=False)
    assert rows_of(more.test) == first  # the same rows test, whether some are watched with or not


def test_given_validation_and_test_files_are_used_completely(tmp_path: Path) -> None:
    config = DataConfig(
        data=numbered(tmp_path / "a.npy", 10),
        test_data=numbered(tmp_path / "b.npy", 4, 50),
        validation_data=numbered(tmp_path / "c.npy", 3, 80),
    )
    dataset = load_data(config, labels=False)
    assert rows_of(dataset.train) == list(range(10))
    assert rows_of(dataset.test) == [50, 51, 52, 53]
    assert rows_of(dataset.validation) == [80, 81, 82]


def test_validation_images_of_a_known_data_set_come_from_its_training_images() -> None:
    known = load_dataset("digits", labels=True)
    same = load_data(DataConfig(dataset="digits"), labels=True)
    assert torch.equal(same.train[:], known.train)
    assert same.validation is None
    dataset = load_data(DataConfig(dataset="digits", validation_fraction=0.1), labels=True)
    assert torch.equal(dataset.test[:], known.test)
    assert dataset.validation is not None
    assert dataset.train_labels is not None
    assert dataset.validation_labels is not None
    assert (len(dataset.train), len(dataset.validation)) == (1437 - 144, 144)
    everything = torch.cat([dataset.train[:], dataset.validation[:]]).flatten(1)
    labels = torch.cat([dataset.train_labels, dataset.validation_labels])
    assert known.train_labels is not None
    rows = sorted(zip(everything.tolist(), labels.tolist(), strict=True))
    assert rows == sorted(zip(known.train.flatten(1).tolist(), known.train_labels.tolist(), strict=True))


def test_a_set_too_small_to_be_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"x\.npy has 1 rows, of which 1 would be kept"):
        load_data(DataConfig(data=numbered(tmp_path / "x.npy", 1)), labels=False)


def test_a_mapped_file_trains_as_the_same_images_in_memory(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 6, 5), dtype=np.uint8)
    np.save(tmp_path / "x.npy", images)
    mapped = load_data(DataConfig(data=tmp_path / "x.npy"), labels=False)
    losses: list[list[float]] = []
    for part in (mapped.train, mapped.train[:]):
        trainer = Trainer(ModelConfig((1, 6, 5), 3, 8), TrainingConfig(batch_size=7, seed=1), torch.device("cpu"))
        found: list[float] = []
        trainer.fit_epoch(part, lambda loss, found=found: found.append(float(loss)))  # type: ignore[misc]  # mypy has no type for a default in a lambda
        losses.append(found)
    assert losses[0] == losses[1]
    assert len(losses[0]) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "got neither, give one of them"),
        ({"dataset": "digits", "data": Path("x")}, "got both, give one of them"),
        ({"dataset": "cifar"}, "dataset must be one of mnist"),
        ({"dataset": "digits", "scale": (0, 1)}, "scale goes with data"),
        ({"dataset": "digits", "test_data": Path("x")}, "test_data goes with data"),
        ({"data": Path("x"), "data_dir": Path("y")}, "data_dir goes with dataset"),
        ({"data": Path("x"), "validation_data": Path("y"), "validation_fraction": 0.1}, "were both given"),
        ({"data": Path("x"), "test_fraction": 0.0}, "test_fraction must be above 0"),
        ({"data": Path("x"), "validation_fraction": 1.0}, "validation_fraction must be from 0"),
        ({"data": Path("x"), "scale": (1, 1)}, r"scale must be two finite numbers .*, got \(1, 1\)"),
        ({"data": Path("x"), "scale": (0, float("inf"))}, "scale must be two finite numbers"),
        ({"data": Path("x"), "scale": (1e9, 1e9 + 1)}, "that float32 tells apart"),
        ({"data": Path("x"), "resize": (0, 4)}, "resize must be a height and a width of at least 1"),
        ({"data": Path("x"), "split_seed": -1}, "split_seed must be between 0"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DataConfig(**options)  # type: ignore[arg-type]  # options from the parameters


# The known data sets


REAL_MNIST = os.environ.get("EDGEVAE_DATA")


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_images(folder: Path, suffix: str = ".gz") -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    train, test = rng.integers(0, 256, (7, 6, 5)), rng.integers(0, 256, (3, 6, 5))
    write_idx(folder / f"train-images-idx3-ubyte{suffix}", train)
    write_idx(folder / f"t10k-images-idx3-ubyte{suffix}", test)
    write_idx(folder / f"train-labels-idx1-ubyte{suffix}", np.arange(7) % 4)
    write_idx(folder / f"t10k-labels-idx1-ubyte{suffix}", np.arange(3))
    return train, test


def test_digits_come_with_scikit_learn() -> None:
    digits = load_dataset("digits")
    assert digits.train.shape == (1437, 1, 8, 8)
    assert digits.test.shape == (360, 1, 8, 8)
    assert digits.train.dtype == torch.float32
    assert (float(digits.train.min()), float(digits.train.max())) == (0.0, 1.0)
    assert digits.data_shape == (1, 8, 8)


def test_digits_with_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="data_dir must not be given for digits"):
        load_dataset("digits", tmp_path)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("layout", ["", "MNIST/raw"])
def test_idx_files_are_found_flat_and_in_torchvisions_layout(tmp_path: Path, suffix: str, layout: str) -> None:
    train, test = write_images(tmp_path / layout, suffix)
    with pytest.warns(UserWarning, match="does not hold the published test images of mnist"):
        mnist = load_dataset("mnist", tmp_path)
    np.testing.assert_allclose(mnist.train.numpy(), train[:, None] / np.float32(255), rtol=1e-6)
    np.testing.assert_allclose(mnist.test.numpy(), test[:, None] / np.float32(255), rtol=1e-6)
    assert mnist.data_shape == (1, 6, 5)


def test_a_folder_without_the_files_is_an_error_that_names_them(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"train-images-idx3-ubyte\.gz is not in .*or in its KMNIST/raw"):
        load_dataset("kmnist", tmp_path)


def test_without_network_and_files_the_error_names_both_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision.datasets

    def offline(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz:\ntried two mirrors")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", offline)
    with pytest.raises(DatasetError, match=r"could not be downloaded \(.*\)\. Two ways out: connect .* --data-dir"):
        load_dataset("fashion-mnist")


def test_downloaded_files_are_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train, _ = write_images(tmp_path / "data" / "KMNIST" / "raw", "")
    assert len(load_dataset("kmnist").train) == len(train)


def test_training_and_test_images_of_different_sizes_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path)
    write_idx(tmp_path / "t10k-images-idx3-ubyte.gz", np.zeros((3, 4, 4)))
    with pytest.raises(DatasetError, match=r"one size, got \(6, 5\) in .* and \(4, 4\) in"):
        load_dataset("kmnist", tmp_path)


@pytest.mark.parametrize("array", [np.zeros((3,)), np.zeros((0, 4, 4))])
def test_files_without_images_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    write_images(tmp_path)
    write_idx(tmp_path / "t10k-images-idx3-ubyte.gz", array)
    with pytest.raises(DatasetError, match="must hold images"):
        load_dataset("mnist", tmp_path)


@pytest.mark.skipif(REAL_MNIST is None, reason="EDGEVAE_DATA names no folder with mnist/")
def test_the_published_mnist_is_recognised_and_refused_under_another_name() -> None:
    folder = Path(str(REAL_MNIST), "mnist")
    mnist = load_dataset("mnist", folder)
    assert mnist.train.shape == (60000, 1, 28, 28)
    assert mnist.test.shape == (10000, 1, 28, 28)
    assert float(mnist.train.mean()) == pytest.approx(0.1307, abs=1e-4)  # the mean that the field knows
    with pytest.raises(DatasetError, match="holds mnist, not fashion-mnist"):
        load_dataset("fashion-mnist", folder)


def test_labels_come_where_they_are_asked_for(tmp_path: Path) -> None:
    write_images(tmp_path)
    assert load_dataset("kmnist", tmp_path).train_labels is None
    kmnist = load_dataset("kmnist", tmp_path, labels=True)
    assert kmnist.train_labels is not None
    assert kmnist.test_labels is not None
    assert kmnist.train_labels.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert kmnist.test_labels.dtype == torch.int64
    assert kmnist.num_classes == 4
    digits = load_dataset("digits", labels=True)
    assert digits.test_labels is not None
    assert digits.test_labels.shape == (360,)
    assert (digits.num_classes, load_dataset("digits").num_classes) == (10, 0)


def test_labels_that_are_missing_or_too_few_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.zeros(2))
    with pytest.raises(DatasetError, match=r"must hold a label for each of 3 images, got shape \(2,\)"):
        load_dataset("kmnist", tmp_path, labels=True)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DatasetError, match=r"t10k-labels-idx1-ubyte\.gz is not in"):
        load_dataset("kmnist", tmp_path, labels=True)


# Binarization


GREY = torch.tensor([0.0, 0.2, 0.5, 0.51, 1.0])


def test_binarize_none_keeps_values_and_threshold_cuts_at_one_half() -> None:
    assert binarize(GREY, "none") is GREY
    assert binarize(GREY, "threshold").tolist() == [0, 0, 0, 1, 1]


def test_stochastic_draws_with_the_grey_value_as_probability_and_anew_each_time() -> None:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        first, second = (binarize(GREY.expand(20_000, 5), "stochastic") for _ in range(2))
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(first, second)
    torch.testing.assert_close(first.mean(0), GREY, atol=0.02, rtol=0)


def test_test_sets_are_drawn_once_and_the_generator_stays() -> None:
    before = torch.get_rng_state()
    x = GREY.expand(100, 5)
    assert torch.equal(binarize_once(x, "stochastic"), binarize_once(x, "stochastic"))
    assert torch.equal(torch.get_rng_state(), before)


def test_training_sees_binary_images_that_change_with_the_epoch(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    config = TrainingConfig(binarize="stochastic", batch_size=2000)
    trainer = Trainer(ModelConfig((1, 8, 8), 3, 8), config, torch.device("cpu"))

    def step(_self: Step, x: torch.Tensor, *_others: object) -> torch.Tensor:
        seen.append(x)
        return torch.tensor(1.0)

    monkeypatch.setattr(Step, "__call__", step)
    for _ in range(2):
        trainer.fit_epoch(digits.train)
    assert all(set(x.unique().tolist()) == {0.0, 1.0} for x in seen)
    assert not torch.equal(seen[0].sum(0), seen[1].sum(0))


def test_unknown_binarization_is_refused() -> None:
    with pytest.raises(ConfigError, match="binarize must be one of none, threshold, stochastic, got 'otsu'"):
        TrainingConfig(binarize="otsu")  # type: ignore[arg-type]  # that is the point
