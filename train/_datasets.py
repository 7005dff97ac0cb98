"""The images to train and test on, whole in memory."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train._errors import DatasetError
from train._idx import read_idx

DatasetName = Literal["mnist", "fashion-mnist", "kmnist", "digits"]
DATASET_NAMES: tuple[DatasetName, ...] = get_args(DatasetName)

_TRAIN_FILE = "train-images-idx3-ubyte"
_TEST_FILE = "t10k-images-idx3-ubyte"
_TORCHVISION_CLASS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
_DOWNLOAD_FOLDER = Path("data")
_DIGITS_TEST_SIZE = 360
_DIGITS_MAX = 16

# The three sets have the same file names and sizes: only the content tells them apart. SHA-256 of the test pixels.
_TEST_PIXELS = {
    "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161": "mnist",
    "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a": "fashion-mnist",
}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images in memory, float32 in [0, 1].

    Args:
        name: What the set is called in files and tables.
        train: Training images, shape `(num_train, channels, height, width)`.
        test: Test images, shape `(num_test, channels, height, width)`.
    """

    name: str
    train: Tensor
    test: Tensor

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of one image, `(channels, height, width)`."""
        return tuple(self.train.shape[1:])

    def to(self, device: torch.device) -> Dataset:
        """Return the same set with its tensors on `device`."""
        return dataclasses.replace(self, train=self.train.to(device), test=self.test.to(device))


def load_dataset(name: DatasetName, data_dir: Path | None = None) -> Dataset:
    """Return the data set `name`, from `data_dir` or, without it, from the network.

    Args:
        name: `digits` is scikit-learn's embedded set (8x8, the last 360 images are the test set) and needs no files.
        data_dir: Folder with the IDX files, plain or gzip, in itself or in torchvision's layout. Without it the files
            are looked for in `data/` in the working directory, and downloaded to it through torchvision.

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
        return _digits()
    train_path, test_path = _locate(name, data_dir) if data_dir is not None else _download(name)
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
    return Dataset(name, _to_tensor(train), _to_tensor(test))


def _digits() -> Dataset:
    from sklearn.datasets import load_digits  # scikit-learn takes a second to import, and only this set needs it

    pixels = load_digits().images.astype(np.float32) / np.float32(_DIGITS_MAX)
    images = torch.from_numpy(pixels).unsqueeze(1)
    return Dataset("digits", images[:-_DIGITS_TEST_SIZE], images[-_DIGITS_TEST_SIZE:])


def _candidates(folder: Path, name: str, file: str) -> list[Path]:
    raw = folder / _TORCHVISION_CLASS[name] / "raw"
    return [place / (file + suffix) for place in (folder, raw) for suffix in (".gz", "")]


def _locate(name: str, folder: Path) -> tuple[Path, Path]:
    found = []
    for file in (_TRAIN_FILE, _TEST_FILE):
        path = next((path for path in _candidates(folder, name, file) if path.is_file()), None)
        if path is None:
            raise DatasetError(
                f"{file}.gz is not in {folder}: expected {_TRAIN_FILE} and {_TEST_FILE}, plain or .gz, "
                f"in the folder itself or in its {_TORCHVISION_CLASS[name]}/raw"
            )
        found.append(path)
    return found[0], found[1]


def _download(name: str) -> tuple[Path, Path]:
    try:
        return _locate(name, _DOWNLOAD_FOLDER)
    except DatasetError:
        pass
    import torchvision.datasets  # half a second to import, and only a download needs it

    fetch = getattr(torchvision.datasets, _TORCHVISION_CLASS[name])
    try:
        fetch(_DOWNLOAD_FOLDER, train=True, download=True)
    except (OSError, RuntimeError) as error:
        raise DatasetError(
            f"{name} is not in {_DOWNLOAD_FOLDER}/ and could not be downloaded ({_first_line(error)}). Two ways out: "
            f"connect to the network and run again, or give --data-dir, a folder with {_TRAIN_FILE}.gz and "
            f"{_TEST_FILE}.gz (plain files and torchvision's layout do too). --dataset digits needs neither."
        ) from error
    return _locate(name, _DOWNLOAD_FOLDER)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(":.")


def _images(path: Path) -> NDArray[np.uint8]:
    images = read_idx(path)
    if images.ndim != 3 or len(images) == 0:
        raise DatasetError(f"{path} must hold images, shape (count, height, width), got shape {images.shape}")
    return images


def _to_tensor(images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(images.astype(np.float32) / np.float32(255)).unsqueeze(1)
