"""Data sets that everybody knows, whole in memory."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DatasetError
from .dataset import Dataset
from .idx import read_idx

DatasetName = Literal["mnist", "fashion-mnist", "kmnist", "digits"]
DATASET_NAMES: tuple[DatasetName, ...] = get_args(DatasetName)

_FILES = ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte")
_LABEL_FILES = ("train-labels-idx1-ubyte", "t10k-labels-idx1-ubyte")
_TORCHVISION_CLASS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
_DOWNLOAD_FOLDER = Path("data")
_DIGITS_TEST_SIZE = 360
_DIGITS_MAX = 16

# The three sets have the same file names and sizes: only the content tells them apart. SHA-256 of the test pixels.
_TEST_PIXELS = {
    "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161": "mnist",
    "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a": "fashion-mnist",
}


def load_dataset(name: DatasetName, data_dir: Path | None = None, *, labels: bool = False) -> Dataset:
    """Return the data set `name`, from `data_dir` or, without it, from the network.

    Args:
        name: `digits` is scikit-learn's embedded set (8x8, the last 360 images are the test set) and needs no files.
        data_dir: Folder with the IDX files, plain or gzip, in itself or in torchvision's layout. Without it the files
            are looked for in `data/` in the working directory, and downloaded to it through torchvision.
        labels: Whether to load the labels too.

    Raises:
        DatasetError: The images cannot be had, are damaged, or are another set's. Never another set instead.

    Warns:
        UserWarning: The files hold other images than MNIST or Fashion-MNIST as they were published.
    """
    if name == "digits":
        if data_dir is not None:
            raise DatasetError(
                f"data_dir must not be given for digits, got {data_dir}: the set comes with scikit-learn; "
                "leave data_dir out, or name the data set that the folder holds"
            )
        return _digits(labels)
    files = _FILES + _LABEL_FILES * labels
    train_path, test_path, *label_paths = (
        _locate(name, data_dir, files) if data_dir is not None else _download(name, files)
    )
    train, test = _images(train_path), _images(test_path)
    found = _TEST_PIXELS.get(hashlib.sha256(test.tobytes()).hexdigest())
    if found not in (None, name):
        raise DatasetError(f"{test_path} holds {found}, not {name}: the files have the same names; give its own folder")
    if found is None and name in _TEST_PIXELS.values():
        warnings.warn(f"{test_path} does not hold the published test images of {name}", stacklevel=2)
    if train.shape[1:] != test.shape[1:]:
        raise DatasetError(
            f"training and test images must have one size, got {train.shape[1:]} in {train_path} "
            f"and {test.shape[1:]} in {test_path}"
        )
    found_labels = [_labels(path, len(images)) for path, images in zip(label_paths, (train, test), strict=False)]
    return _dataset(name, [_to_tensor(train), _to_tensor(test)], found_labels)


def _digits(labels: bool) -> Dataset:
    from sklearn.datasets import load_digits  # scikit-learn takes a second to import, and only this set needs it

    digits = load_digits()
    pixels = digits.images.astype(np.float32) / np.float32(_DIGITS_MAX)
    images = torch.from_numpy(pixels).unsqueeze(1)
    found_labels = [torch.from_numpy(digits.target.astype(np.int64))] if labels else []
    parts = (slice(None, -_DIGITS_TEST_SIZE), slice(-_DIGITS_TEST_SIZE, None))
    return _dataset("digits", [images[part] for part in parts], [y[part] for y in found_labels for part in parts])


def _dataset(name: str, images: Sequence[Tensor], labels: Sequence[Tensor]) -> Dataset:
    train_labels, test_labels = labels or (None, None)
    return Dataset(name, images[0], images[1], train_labels, test_labels)


def _candidates(folder: Path, name: str, file: str) -> list[Path]:
    raw = folder / _TORCHVISION_CLASS[name] / "raw"
    return [place / (file + suffix) for place in (folder, raw) for suffix in (".gz", "")]


def _locate(name: str, folder: Path, files: Sequence[str]) -> list[Path]:
    found = []
    for file in files:
        path = next((path for path in _candidates(folder, name, file) if path.is_file()), None)
        if path is None:
            raise DatasetError(
                f"{file}.gz is not in {folder}: expected {' and '.join(files)}, plain or .gz, "
                f"in the folder itself or in its {_TORCHVISION_CLASS[name]}/raw"
            )
        found.append(path)
    return found


def _download(name: str, files: Sequence[str]) -> list[Path]:
    try:
        return _locate(name, _DOWNLOAD_FOLDER, files)
    except DatasetError:
        pass
    import torchvision.datasets  # half a second to import, and only a download needs it

    fetch = getattr(torchvision.datasets, _TORCHVISION_CLASS[name])
    try:
        fetch(_DOWNLOAD_FOLDER, train=True, download=True)
    except (OSError, RuntimeError) as error:
        raise DatasetError(
            f"{name} is not in {_DOWNLOAD_FOLDER}/ and could not be downloaded ({_first_line(error)}). Two ways out: "
            f"connect to the network and run again, or give --data-dir, a folder with "
            f"{' and '.join(f'{file}.gz' for file in files)} (plain files and torchvision's layout do too). "
            "--dataset digits needs neither."
        ) from error
    return _locate(name, _DOWNLOAD_FOLDER, files)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(":.")


def _images(path: Path) -> NDArray[np.uint8]:
    images = read_idx(path)
    if images.ndim != 3 or len(images) == 0:
        raise DatasetError(f"{path} must hold images, shape (count, height, width), got shape {images.shape}")
    return images


def _labels(path: Path, num_images: int) -> Tensor:
    labels = read_idx(path)
    if labels.shape != (num_images,):
        raise DatasetError(f"{path} must hold a label for each of {num_images} images, got shape {labels.shape}")
    return torch.from_numpy(labels.astype(np.int64))


def _to_tensor(images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(images.astype(np.float32) / np.float32(255)).unsqueeze(1)
