"""Where the observations come from: known data sets, and files of one's own."""

from ._config import DataConfig
from ._dataset import Dataset
from ._digest import digest_of
from ._known import DATASET_NAMES, DatasetName, load_dataset
from ._load import load_data
from ._preprocessing import Preprocessing
from ._rows import Rows
from ._values import check_range, standardisation_of

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
