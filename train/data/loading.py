"""`DataConfig` says which data to train with; `load_data` loads them and splits them into three sets."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from edgevae import Preprocessing

from ..config import MAX_SEED
from ..errors import ConfigError, DatasetError
from .datasets import DATASET_NAMES, Dataset, DatasetName, load_dataset
from .rows import Images, Rows
from .sources import Source, is_array_name, open_array, open_folder

_SUFFIXES = (".gz", ".npy", ".npz")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which data to train, validate and test with: a known set or your own files.

    Args:
        dataset: A known set; its published test images are its test set. Give this or `data`.
        data_dir: Folder with the known set's files; without it they are taken from `data/`, or downloaded to it.
        data: Own data: `.npy`, `.npz` with `x` (and labels in `y`), IDX, or a folder of images (of class folders with
            images, for labels). Arrays are rows `(n, features)` or images `(n, h, w)`, `(n, h, w, 1 or 3)` or
            `(n, 1 or 3, h, w)`. A `.npy` file is not read into memory, but mapped; its labels are in
            `<name>-labels.npy` in the same folder, those of IDX in a file named as MNIST's.
        test_data: Own data to test with, of the same shape; without it a part of `data` is kept for that.
        validation_data: Own data to validate with, of the same shape.
        test_fraction: Part of `data` to test with, if there is no `test_data`; above 0 and below 1, at least 1 row.
        validation_fraction: Part of `data`, or of a known set's training images, to validate with; 0 for none.
        split_seed: Seed of the random split, 0 to 2**32 - 1. It is not the training's seed, so that trainings with
            several seeds have the same test set. Rows stay in their order.
        scale: `(low, high)`, the values of an own array that become 0 and 1. Without it uint8 is divided by 255, and
            other numbers are taken as they are.
        resize: `(height, width)` to which own image files are resized, after `grey`; without it all must have one size.
        grey: Convert own image files to grey.

    Raises:
        ConfigError: An option is out of range, or options do not go together.
    """

    dataset: DatasetName | None = None
    data_dir: Path | None = None
    data: Path | None = None
    test_data: Path | None = None
    validation_data: Path | None = None
    test_fraction: float = 0.1
    validation_fraction: float = 0.0
    split_seed: int = 0
    scale: tuple[float, float] | None = None
    resize: tuple[int, int] | None = None
    grey: bool = False

    def __post_init__(self) -> None:
        if (self.dataset is None) == (self.data is None):
            got = "neither" if self.dataset is None else "both"
            raise ConfigError(f"data are either dataset, a known set, or data, a path; got {got}, give one of them")
        if self.dataset is not None and self.dataset not in DATASET_NAMES:
            raise ConfigError(f"dataset must be one of {', '.join(DATASET_NAMES)}, got {self.dataset!r}")
        own = ("test_data", "validation_data", "scale", "resize", "grey")
        if self.dataset is not None and (wrong := [name for name in own if getattr(self, name)]):
            raise ConfigError(f"{wrong[0]} goes with data, own files; {self.dataset} has its own test set and values")
        if self.data is not None and self.data_dir is not None:
            raise ConfigError("data_dir goes with dataset; data itself names where own files are")
        if self.validation_data is not None and self.validation_fraction:
            raise ConfigError("validation_data and validation_fraction were both given; give one of them")
        if not 0 < self.test_fraction < 1:
            raise ConfigError(f"test_fraction must be above 0 and below 1, got {self.test_fraction}")
        if not 0 <= self.validation_fraction < 1:
            raise ConfigError(f"validation_fraction must be from 0 to below 1, got {self.validation_fraction}")
        if not 0 <= self.split_seed <= MAX_SEED:
            raise ConfigError(f"split_seed must be between 0 and {MAX_SEED}, got {self.split_seed}")
        try:
            Preprocessing(self.scale, self.resize, self.grey)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    @property
    def name(self) -> str:
        """Name of the data: that of the known set, or of the file or folder without its ending."""
        if self.data is None:
            return str(self.dataset)
        name = self.data.resolve().name
        for suffix in _SUFFIXES:
            name = name.removesuffix(suffix)
        return name


def load_data(config: DataConfig, *, labels: bool) -> Dataset[Images]:
    """Return the data of a training.

    A known set is in memory as float32. Own data stay in their stored dtype, `.npy` files on the disk, and are
    converted batch by batch; their values are read once here.

    Args:
        config: Which data, and their preprocessing.
        labels: Whether to load the labels too, for a conditional model.

    Raises:
        DatasetError: They cannot be read, or do not fit; the message names file, row and reason.
    """
    if config.dataset is not None:
        return _known(config, config.dataset, labels)
    if config.data is None:
        raise DatasetError("data must name a file or a folder, got none")
    source = open_source(config.data, config, labels)
    test_fraction = 0.0 if config.test_data else config.test_fraction
    fractions = (config.validation_fraction, test_fraction)
    train_rows, validation_rows, test_rows = split(len(source.rows), fractions, config.split_seed, config.data)
    train = _subset(source, train_rows)
    test = _open_separate(config.test_data, source, config, labels) or _subset(source, test_rows)
    validation = _open_separate(config.validation_data, source, config, labels)
    if validation is None and config.validation_fraction:
        validation = _subset(source, validation_rows)
    if train.labels is not None:
        _check_classes(train, [test] if validation is None else [test, validation])
    return Dataset[Images](
        name=config.name,
        train=train.rows,
        test=test.rows,
        train_labels=train.labels,
        test_labels=test.labels,
        validation=None if validation is None else validation.rows,
        validation_labels=None if validation is None else validation.labels,
        preprocessing=train.rows.preprocessing,
        class_names=source.class_names,
    )


def _known(config: DataConfig, name: DatasetName, labels: bool) -> Dataset[Images]:
    dataset = load_dataset(name, config.data_dir, labels=labels)
    if config.validation_fraction:
        train, validation = split(len(dataset.train), (config.validation_fraction,), config.split_seed, name)
        y = dataset.train_labels
        dataset = dataclasses.replace(
            dataset,
            train=dataset.train[train],
            train_labels=None if y is None else y[train],
            validation=dataset.train[validation],
            validation_labels=None if y is None else y[validation],
        )
    return dataset


def open_source(path: Path, config: DataConfig, labels: bool) -> Source:
    """Open one file or folder, with the options of `config`.

    Raises:
        DatasetError: It cannot be read, or the options do not fit it.
    """
    if path.is_dir():
        if config.scale is not None:
            raise DatasetError(
                f"scale goes with arrays; the pixels of image files, as in {path}, are in [0, 1] already"
            )
        return open_folder(path, config.resize, config.grey, labels)
    if config.resize is not None or config.grey:
        option = "resize" if config.resize is not None else "grey"
        raise DatasetError(f"{option} goes with a folder of image files, got {path}; change the array itself")
    if not path.exists():
        raise DatasetError(f"{path} is not there; give a file or a folder of images")
    if not is_array_name(path):
        raise DatasetError(
            f"{path} is of no known kind; expected .npy, .npz, IDX (-ubyte, .idx, .gz) or a folder of images"
        )
    return open_array(path, config.scale, labels)


def _open_separate(path: Path | None, training: Source, config: DataConfig, labels: bool) -> Source | None:
    """Open separate test or validation data, and check that they are like the training data."""
    if path is None:
        return None
    source = open_source(path, config, labels)
    here, there = source.rows, training.rows
    if here.shape[1:] != there.shape[1:]:
        raise DatasetError(
            f"{path} must have observations of shape {tuple(there.shape[1:])} as {training.path} has, got "
            f"{tuple(here.shape[1:])}"
        )
    if config.scale is None and (here.dtype == torch.uint8) != (there.dtype == torch.uint8) and path.is_file():
        raise DatasetError(
            f"{path} holds {_dtype(here)} and {training.path} {_dtype(there)}: only uint8 would be divided by 255; "
            "save both in one dtype, or give --scale"
        )
    if source.class_names == training.class_names or source.labels is None:
        return source
    unknown = [name for name in source.class_names if name not in training.class_names]
    if unknown or not source.class_names:
        names = ", ".join(unknown) or "numbers without names"
        raise DatasetError(
            f"{path} must have the classes of {training.path} ({', '.join(training.class_names)}), got {names}"
        )
    numbers = torch.tensor([training.class_names.index(name) for name in source.class_names])
    return dataclasses.replace(source, labels=numbers[source.labels], class_names=training.class_names)


def _dtype(rows: Rows) -> str:
    return str(rows.dtype).removeprefix("torch.")


def _subset(source: Source, rows: Tensor) -> Source:
    if len(rows) == len(source.rows):
        return source
    labels = None if source.labels is None else source.labels[rows]
    return dataclasses.replace(source, rows=source.rows.take(rows), labels=labels)


def _check_classes(train: Source, others: list[Source]) -> None:
    """Check that each class has a training row: classes are numbered from 0, without gaps."""
    every = [part.labels for part in (train, *others) if part.labels is not None]
    largest = max(int(labels.max()) for labels in every)
    trained = set(every[0].unique().tolist())
    count = max(largest + 1, len(train.class_names))
    if len(trained) < count:
        missing = next(label for label in range(count) if label not in trained)
        name = f" ({train.class_names[missing]})" if train.class_names else ""
        raise DatasetError(
            f"{train.path} has no training row of class {missing}{name}; classes are numbered from 0 to {count - 1}, "
            "and each needs a row: add some, renumber the labels, or split in another way (another split seed)"
        )


def split(count: int, fractions: tuple[float, ...], seed: int, path: Path | str) -> tuple[Tensor, ...]:
    """Split rows at random into training rows and those of each fraction.

    The parts are disjoint and together all rows. A permutation is drawn from PyTorch's CPU generator; the fractions are
    its last parts, each sorted.

    Args:
        count: Number of rows.
        fractions: Parts of `count`; 0 gives no row, any other at least one.
        seed: Of the permutation.
        path: Where the rows are from, for messages.

    Returns:
        Numbers of rows, int64, ascending; one tensor more than there are fractions.

    Raises:
        DatasetError: No row is left to train with.
    """
    sizes = [max(1, round(count * fraction)) if fraction else 0 for fraction in fractions]
    if count <= sum(sizes):
        raise DatasetError(
            f"{path} has {count} rows, of which {sum(sizes)} would be kept for testing or validation; give more"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return tuple(part.sort().values for part in order.split([count - sum(sizes), *sizes]))
