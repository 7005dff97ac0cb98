"""Own data: what each kind of file becomes."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgevae.train import DataConfig, Images, Rows, load_data
from edgevae.train.data.loading import open_source
from edgevae.train.data.sources import Source

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
def test_axes_of_arrays_are_told_apart(
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
def test_other_numbers_come_out_as_they_are(tmp_path: Path, dtype: type, order: str) -> None:
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
    for rows in (source.rows[:5], source.rows[torch.arange(5)], dataset.train[:5]):
        rows.zero_()
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
