"""The public names of `edgevae.train`."""

from . import _requirements  # noqa: F401 - checks, before anything else is imported

# isort: split
from ._architectures import architecture_of
from ._binarize import binarize, binarize_once
from ._config import Binarize, ModelConfig, Precision, TrainingConfig
from ._data import (
    DATASET_NAMES,
    DataConfig,
    Dataset,
    DatasetName,
    Preprocessing,
    Rows,
    check_range,
    load_data,
    load_dataset,
    standardisation_of,
)
from ._device import select_device
from ._elbo import elbo_of_each, evaluate_elbo, evaluating
from ._errors import (
    ConfigError,
    DatasetError,
    DeviceError,
    DivergedError,
    FirstFailedError,
    InstallError,
    LabelError,
    ProcessError,
    RunError,
    TrainError,
)
from ._evaluation import Evaluation, evaluate
from ._first_calls import make_first_calls
from ._fit import fit
from ._images import Images
from ._importance import importance_weighted_bound
from ._labels import check_label_values
from ._latents import COMPONENT_SITE, LATENT_SITE, LATENTS, Latent
from ._likelihoods import LIKELIHOODS, Likelihood
from ._mlflow import MlflowLog
from ._model_for import model_for
from ._networks import ARCHITECTURES, AbstractDecoder, AbstractEncoder, Decoder, Encoder
from ._objective import objective_of
from ._observer import Observer
from ._processes import Processes
from ._run import DatasetInfo, EpochMetrics, Run, RunConfig, load_run, newest_run, run_config
from ._run_writer import RunWriter
from ._tensorboard import TensorBoardLog
from ._terms import ElboTerms, GivenNoise, elbo_terms
from ._torchrun import joined
from ._trainer import Trainer
from ._vae import VAE

make_first_calls()

__all__ = [
    "ARCHITECTURES",
    "COMPONENT_SITE",
    "DATASET_NAMES",
    "LATENTS",
    "LATENT_SITE",
    "LIKELIHOODS",
    "VAE",
    "AbstractDecoder",
    "AbstractEncoder",
    "Binarize",
    "ConfigError",
    "DataConfig",
    "Dataset",
    "DatasetError",
    "DatasetInfo",
    "DatasetName",
    "Decoder",
    "DeviceError",
    "DivergedError",
    "ElboTerms",
    "Encoder",
    "EpochMetrics",
    "Evaluation",
    "FirstFailedError",
    "GivenNoise",
    "Images",
    "InstallError",
    "LabelError",
    "Latent",
    "Likelihood",
    "MlflowLog",
    "ModelConfig",
    "Observer",
    "Precision",
    "Preprocessing",
    "ProcessError",
    "Processes",
    "Rows",
    "Run",
    "RunConfig",
    "RunError",
    "RunWriter",
    "TensorBoardLog",
    "TrainError",
    "Trainer",
    "TrainingConfig",
    "architecture_of",
    "binarize",
    "binarize_once",
    "check_label_values",
    "check_range",
    "elbo_of_each",
    "elbo_terms",
    "evaluate",
    "evaluate_elbo",
    "evaluating",
    "fit",
    "importance_weighted_bound",
    "joined",
    "load_data",
    "load_dataset",
    "load_run",
    "model_for",
    "newest_run",
    "objective_of",
    "run_config",
    "select_device",
    "standardisation_of",
]
