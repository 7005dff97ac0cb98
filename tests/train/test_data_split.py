"""Own data: which rows are for what."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from edgevae.train import (
    ConfigError,
    DataConfig,
    DatasetError,
    Images,
    ModelConfig,
    Trainer,
    TrainingConfig,
    load_data,
    load_dataset,
)


def numbered(path: Path, count: int, first: int = 0) -> Path:
    np.save(path, np.arange(first, first + count, dtype=np.float32)[:, None].repeat(3, axis=1))
    return path


def rows_of(images: Images | None) -> list[int]:
    return [] if images is None else images[:][:, 0].int().tolist()


@pytest.mark.parametrize(
    ("count", "validation", "sizes"), [(100, 0.0, (90, 0, 10)), (100, 0.25, (65, 25, 10)), (3, 0.1, (1, 1, 1))]
)
def test_parts_are_disjoint_and_together_everything(
    tmp_path: Path, count: int, validation: float, sizes: tuple[int, int, int]
) -> None:
    config = DataConfig(data=numbered(tmp_path / "x.npy", count), validation_fraction=validation)
    dataset = load_data(config, labels=False)
    parts = [rows_of(part) for part in (dataset.train, dataset.validation, dataset.test)]
    assert tuple(map(len, parts)) == sizes
    assert sorted(itertools.chain(*parts)) == list(range(count))
    assert all(part == sorted(part) for part in parts)


def test_the_split_hangs_on_its_seed_alone(tmp_path: Path) -> None:
    path = numbered(tmp_path / "x.npy", 100)
    configs = [DataConfig(data=path, split_seed=seed) for seed in (0, 0, 1)]
    first, again, other = (rows_of(load_data(config, labels=False).test) for config in configs)
    assert first == again != other
    more = load_data(DataConfig(data=path, validation_fraction=0.2), labels=False)
    assert rows_of(more.test) == first  # the same rows test, whether some are watched with or not


def test_files_that_are_given_are_taken_whole(tmp_path: Path) -> None:
    config = DataConfig(
        data=numbered(tmp_path / "a.npy", 10),
        test_data=numbered(tmp_path / "b.npy", 4, 50),
        validation_data=numbered(tmp_path / "c.npy", 3, 80),
    )
    dataset = load_data(config, labels=False)
    assert rows_of(dataset.train) == list(range(10))
    assert rows_of(dataset.test) == [50, 51, 52, 53]
    assert rows_of(dataset.validation) == [80, 81, 82]


def test_a_known_set_gives_up_training_images_and_no_test_images() -> None:
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
