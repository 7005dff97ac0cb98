"""Where the observations come from: known data sets, and files of one's own."""

from train._data._config import DataConfig
from train._data._dataset import Dataset
from train._data._digest import digest_of
from train._data._known import DATASET_NAMES, DatasetName, load_dataset
from train._data._load import load_data
from train._data._preprocessing import Preprocessing
from train._data._rows import Rows
from train._data._values import check_range, standardisation_of

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
