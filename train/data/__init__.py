"""Data to train on: known data sets, and your own files."""

from edgevae import Preprocessing

from .datasets import DATASET_NAMES, Dataset, DatasetName, digest_of, load_dataset
from .loading import DataConfig, load_data, open_source
from .rows import (
    Images,
    Rows,
    binarize,
    binarize_once,
    check_range,
    evenly_spaced,
    row_numbers,
    standardisation_of,
)

__all__ = [
    "DATASET_NAMES",
    "DataConfig",
    "Dataset",
    "DatasetName",
    "Images",
    "Preprocessing",
    "Rows",
    "binarize",
    "binarize_once",
    "check_range",
    "digest_of",
    "evenly_spaced",
    "load_data",
    "load_dataset",
    "open_source",
    "row_numbers",
    "standardisation_of",
]
