"""The public names of `edgevae.train`."""

from . import requirements as _requirements  # noqa: F401 - checks, before anything else is imported

# isort: split
from .binarization import binarize, binarize_once
from .config import Binarize, ModelConfig, Precision, TrainingConfig
from .data import (
    DATASET_NAMES,
    DataConfig,
    Dataset,
    DatasetName,
    Images,
    Preprocessing,
    Rows,
    check_range,
    load_data,
    load_dataset,
    standardisation_of,
)
from .device import select_device
from .elbo import (
    ElboTerms,
    GivenNoise,
    elbo_of_each,
    elbo_terms,
    evaluate_elbo,
    evaluating,
    importance_weighted_bound,
)
from .errors import (
    CollapseWarning,
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
from .fitting import check_training, fit, model_for
from .labels import check_label_values
from .latents import COMPONENT_SITE, LATENT_SITE, LATENTS, Latent
from .likelihoods import LIKELIHOODS, Likelihood
from .networks import ARCHITECTURES, AbstractDecoder, AbstractEncoder, Decoder, Encoder, architecture_of
from .objective import objective_of
from .observers import MlflowLog, Observer, TensorBoardLog
from .processes import Processes, joined
from .run import DatasetInfo, EpochMetrics, Run, RunConfig, load_run, newest_run, run_config
from .run_writer import RunWriter
from .trainer import Trainer
from .vae import VAE

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
    "CollapseWarning",
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
    "check_training",
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
