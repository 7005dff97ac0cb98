"""From a choice of data to observations, split into those to train, to watch and to test with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from ..errors import DatasetError
from ..images import Images
from .arrays import is_array_name, open_array
from .config import DataConfig
from .dataset import Dataset
from .known import DatasetName, load_dataset
from .pictures import open_folder
from .rows import Rows
from .source import Source
from .split import split

_SUFFIXES = (".gz", ".npy", ".npz")


def load_data(config: DataConfig, *, labels: bool) -> Dataset[Images]:
    """Return the data of a training.

    A known set is whole in memory as float32. Own data stay as they are stored, `.npy` files on the disk, and are
    converted a batch at a time; their values have been looked at once.

    Args:
        config: Which data, and what is done to them.
        labels: Whether to load the labels too, for a conditional model.

    Raises:
        DatasetError: They cannot be had, or do not fit; the message names file, row and reason.
    """
    if config.dataset is not None:
        return _known(config, config.dataset, labels)
    if config.data is None:
        raise DatasetError("data must name a file or a folder, got none")
    source = _opened(config.data, config, labels)
    test_fraction = 0.0 if config.test_data else config.test_fraction
    fractions = (config.validation_fraction, test_fraction)
    train_rows, validation_rows, test_rows = split(len(source.rows), fractions, config.split_seed, config.data)
    train = _taken(source, train_rows)
    test = _beside(config.test_data, source, config, labels) or _taken(source, test_rows)
    validation = _beside(config.validation_data, source, config, labels)
    if validation is None and config.validation_fraction:
        validation = _taken(source, validation_rows)
    if train.labels is not None:
        _check_classes(train, [test] if validation is None else [test, validation])
    return Dataset[Images](
        name=_name(config.data),
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


def _opened(path: Path, config: DataConfig, labels: bool) -> Source:
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


def _beside(path: Path | None, training: Source, config: DataConfig, labels: bool) -> Source | None:
    """Open data that are given apart, and see that they are of the training data's kind."""
    if path is None:
        return None
    source = _opened(path, config, labels)
    here, there = source.rows, training.rows
    if here.shape[1:] != there.shape[1:]:
        raise DatasetError(
            f"{path} must have observations of shape {tuple(there.shape[1:])} as {training.path} has, got "
            f"{tuple(here.shape[1:])}"
        )
    if config.scale is None and (here.dtype == torch.uint8) != (there.dtype == torch.uint8) and path.is_file():
        raise DatasetError(
            f"{path} holds {_dtype(here)} and {training.path} {_dtype(there)}: of these only uint8 would be divided by "
            "255; save both in one dtype, or give --scale"
        )
    if source.class_names == training.class_names or source.labels is None:
        return source
    strange = [name for name in source.class_names if name not in training.class_names]
    if strange or not source.class_names:
        names = ", ".join(strange) or "numbers without names"
        raise DatasetError(
            f"{path} must have the classes of {training.path} ({', '.join(training.class_names)}), got {names}"
        )
    numbers = torch.tensor([training.class_names.index(name) for name in source.class_names])
    return dataclasses.replace(source, labels=numbers[source.labels], class_names=training.class_names)


def _dtype(rows: Rows) -> str:
    return str(rows.dtype).removeprefix("torch.")


def _taken(source: Source, rows: Tensor) -> Source:
    if len(rows) == len(source.rows):
        return source
    labels = None if source.labels is None else source.labels[rows]
    return dataclasses.replace(source, rows=source.rows.take(rows), labels=labels)


def _check_classes(train: Source, others: list[Source]) -> None:
    """See that each class has something to learn from: classes are numbered from 0, without gaps."""
    every = [part.labels for part in (train, *others) if part.labels is not None]
    largest = max(int(labels.max()) for labels in every)
    there = set(every[0].unique().tolist())
    count = max(largest + 1, len(train.class_names))
    if len(there) < count:
        missing = next(label for label in range(count) if label not in there)
        name = f" ({train.class_names[missing]})" if train.class_names else ""
        raise DatasetError(
            f"{train.path} has no training row of class {missing}{name}; classes are numbered from 0 to {count - 1}, "
            "and each needs a row: add some, renumber the labels, or keep other rows to test with (another split seed)"
        )


def _name(path: Path) -> str:
    name = path.resolve().name
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name
