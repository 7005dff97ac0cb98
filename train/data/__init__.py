"""Where the observations come from: known data sets, and files of one's own."""

from .config import DataConfig
from .dataset import Dataset
from .digest import digest_of
from .known import DATASET_NAMES, DatasetName, load_dataset
from .loading import load_data
from .preprocessing import Preprocessing
from .rows import Rows
from .values import check_range, standardisation_of

__all__ = [
    "DATASET_NAMES",
    "DataConfig",
    "Dataset",
    "DatasetName",
    "Preprocessing",
    "Rows",
    "check_range",
    "digest_of",
    "load_data",
    "load_dataset",
    "standardisation_of",
]
