"""The public names of `edgevae.train`."""

from . import requirements as _requirements  # noqa: F401 - checks, before anything else is imported

# isort: split
from .architectures import architecture_of
from .binarization import binarize, binarize_once
from .config import Binarize, ModelConfig, Precision, TrainingConfig
from .data import (
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
from .device import select_device
from .elbo import elbo_of_each, evaluate_elbo, evaluating
from .errors import (
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
from .evaluation import Evaluation, collapse_advice, evaluate
from .first_calls import make_first_calls
from .fitting import fit
from .images import Images
from .importance import importance_weighted_bound
from .labels import check_label_values
from .latents import COMPONENT_SITE, LATENT_SITE, LATENTS, Latent
from .likelihoods import LIKELIHOODS, Likelihood
from .model_for import model_for
from .networks import ARCHITECTURES, AbstractDecoder, AbstractEncoder, Decoder, Encoder
from .objective import objective_of
from .observers import MlflowLog, Observer, TensorBoardLog
from .processes import Processes
from .run import DatasetInfo, EpochMetrics, Run, RunConfig, load_run, newest_run, run_config
from .run_writer import RunWriter
from .terms import ElboTerms, GivenNoise, elbo_terms
from .torchrun import joined
from .trainer import Trainer
from .vae import VAE

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
    "collapse_advice",
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
