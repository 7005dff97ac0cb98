"""Which data a training takes, as a frozen dataclass."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ..config import MAX_SEED
from ..errors import ConfigError
from .known import DATASET_NAMES, DatasetName
from .preprocessing import Preprocessing


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which data to train, to watch and to test with: a known set or files of one's own.

    Args:
        dataset: A known set; its published test images are its test set. Give this or `data`.
        data_dir: Folder with the known set's files; without it they are looked for in `data/`, and downloaded to it.
        data: Own data: `.npy`, `.npz` with `x` (and labels in `y`), IDX, or a folder of images (of class folders with
            images, for labels). Arrays are rows `(n, features)` or images `(n, h, w)`, `(n, h, w, 1 or 3)` or
            `(n, 1 or 3, h, w)`. A `.npy` file is not read into memory, but mapped; its labels are in
            `<name>-labels.npy` beside it, those of IDX in a file beside it that is named as MNIST's.
        test_data: Own data to test with, of the same shape; without it a part of `data` is kept for that.
        validation_data: Own data to watch the training with, of the same shape.
        test_fraction: Part of `data` to test with, where there is no `test_data`; above 0 and below 1, at least 1 row.
        validation_fraction: Part of `data`, or of a known set's training images, to watch with; 0 for none.
        split_seed: Seed of the draw which rows these are, 0 to 2**32 - 1; not the training's, so that trainings with
            several seeds have the same test set. Rows stay in their order.
        scale: `(low, high)`: the values of an own array that become 0 and 1, those between in proportion. Without it
            uint8 is divided by 255, and other numbers are taken as they are.
        resize: `(height, width)` that own image files get, after `grey`; without it they must have one size.
        grey: Make own image files in colour grey.

    Raises:
        ConfigError: Options do not go together, or are out of their range.
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
            raise ConfigError(f"data come from dataset, a known set, or from data, a path; got {got}, give one of them")
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
        Preprocessing(self.scale, self.resize, self.grey)  # checks them
