"""`Dataset`, which holds training, validation and test images, and the known data sets."""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import TypeVar

from edgevae import InputError, Preprocessing
from edgevae.arrays import open_idx

from ..errors import DatasetError
from .rows import Images, Rows, evenly_spaced

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

ImagesT_co = TypeVar("ImagesT_co", bound=Images, default=Tensor, covariant=True)
_NOTHING = Preprocessing()
_MAX_MEMORY_SHARE = 0.5  # of a CUDA device's free memory, for rows that are moved there
_DIGEST_ROWS = 256


@dataclasses.dataclass(frozen=True)
class Dataset(Generic[ImagesT_co]):
    """Observations, float32 in [0, 1] unless the data have another range. Without a type argument they are tensors.

    Args:
        name: Name of the set, in files and tables.
        train: Training images, shape `(num_train, *data_shape)`.
        test: Test images, shape `(num_test, *data_shape)`.
        train_labels: Their classes, int64 from 0, shape `(num_train,)`; `None` if they were not asked for.
        test_labels: Classes of the test images, shape `(num_test,)`.
        validation: Images that steer a training, and are neither trained nor tested on; `None` for none.
        validation_labels: Their classes.
        preprocessing: What was applied to the stored data.
        class_names: The classes' names, in the order of their numbers; empty without names.
    """

    name: str
    train: ImagesT_co
    test: ImagesT_co
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None
    validation: ImagesT_co | None = None
    validation_labels: Tensor | None = None
    preprocessing: Preprocessing = _NOTHING
    class_names: tuple[str, ...] = ()

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of one observation, `(channels, height, width)` for images."""
        return tuple(self.train.shape[1:])

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 without labels."""
        every = (self.train_labels, self.test_labels, self.validation_labels)
        return max((int(labels.max()) + 1 for labels in every if labels is not None), default=0)

    def without_labels(self) -> Dataset[ImagesT_co]:
        """Return the same set without labels, for a model that is not conditional."""
        return dataclasses.replace(self, train_labels=None, test_labels=None, validation_labels=None)

    def to(self, device: torch.device) -> Dataset[ImagesT_co]:
        """Return the same set on `device`. Rows that have no room there stay, as do images of an unknown type."""
        labels = (self.train_labels, self.test_labels, self.validation_labels)
        train_labels, test_labels, validation_labels = (None if part is None else part.to(device) for part in labels)
        return dataclasses.replace(
            self,
            train=_moved(self.train, device),
            test=_moved(self.test, device),
            train_labels=train_labels,
            test_labels=test_labels,
            validation=None if self.validation is None else _moved(self.validation, device),
            validation_labels=validation_labels,
        )


_T = TypeVar("_T", bound=Images)


def _moved(images: _T, device: torch.device) -> _T:
    if isinstance(images, Rows) and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        num_bytes = images.shape.numel() * images.dtype.itemsize
        return images if num_bytes > _MAX_MEMORY_SHARE * free else cast("_T", images.to(device))
    return cast("_T", images.to(device)) if isinstance(images, (Tensor, Rows)) else images


def digest_of(dataset: Dataset[Images]) -> str:
    """Return the SHA-256 of a data set's sizes, of up to 256 evenly spaced rows of each part, and of all labels.

    The rows are those that the model gets: another split, scale or order gives another digest.
    """
    digest = hashlib.sha256()
    for images, labels in (
        (dataset.train, dataset.train_labels),
        (dataset.validation, dataset.validation_labels),
        (dataset.test, dataset.test_labels),
    ):
        if images is None:
            continue
        picked = evenly_spaced(len(images), _DIGEST_ROWS)
        digest.update(f"{tuple(images.shape)}\n".encode())
        digest.update(images[picked.to(images.device)].cpu().contiguous().numpy().tobytes())
        if labels is not None:
            digest.update(labels.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_dataset(name: DatasetName, data_dir: Path | None = None, *, labels: bool = False) -> Dataset:
    """Return the data set `name`, from `data_dir` or, without it, from the network.

    Args:
        name: `digits` is scikit-learn's embedded set (8x8, the last 360 images are the test set) and needs no files.
        data_dir: Folder with the IDX files, plain or gzip, directly or in torchvision's layout. Without it the files
            are taken from `data/` in the working directory, or downloaded to it by torchvision.
        labels: Whether to load the labels too.

    Raises:
        DatasetError: The images cannot be found or downloaded, are damaged, or are another set's.

    Warns:
        UserWarning: The test images are not those that were published as MNIST or Fashion-MNIST.
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
    train, test = _read_images(train_path), _read_images(test_path)
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
    found_labels = [_read_labels(path, len(images)) for path, images in zip(label_paths, (train, test), strict=False)]
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


def _read_images(path: Path) -> NDArray[np.uint8]:
    images = _read_idx(path)
    if images.ndim != 3 or len(images) == 0:
        raise DatasetError(f"{path} must hold images, shape (count, height, width), got shape {images.shape}")
    return images


def _read_labels(path: Path, num_images: int) -> Tensor:
    labels = _read_idx(path)
    if labels.shape != (num_images,):
        raise DatasetError(f"{path} must hold a label for each of {num_images} images, got shape {labels.shape}")
    return torch.from_numpy(labels.astype(np.int64))


def _to_tensor(images: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(images.astype(np.float32) / np.float32(255)).unsqueeze(1)


def _read_idx(path: Path) -> NDArray[np.uint8]:
    try:
        return open_idx(path)
    except InputError as error:
        raise DatasetError(f"{path} {error}") from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error}; delete it and fetch it again") from error
