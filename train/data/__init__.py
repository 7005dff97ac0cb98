"""Where the observations come from: known data sets, and files of one's own."""

from edgevae import Preprocessing

from .datasets import DATASET_NAMES, Dataset, DatasetName, digest_of, load_dataset
from .loading import DataConfig, load_data
from .rows import Images, Rows, check_range, standardisation_of

__all__ = [
    "DATASET_NAMES",
    "DataConfig",
    "Dataset",
    "DatasetName",
    "Images",
    "Preprocessing",
    "Rows",
    "check_range",
    "digest_of",
    "load_data",
    "load_dataset",
    "standardisation_of",
]
