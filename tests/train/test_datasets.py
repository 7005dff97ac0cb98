"""Where the images come from, and what happens where they do not."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from edgevae.train import DatasetError, load_dataset

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


def test_what_was_downloaded_before_is_not_downloaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_the_real_mnist_is_known_and_taken_for_no_other_set() -> None:
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
