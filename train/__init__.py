"""Fit a Pyro VAE with SVI.

    from pathlib import Path
    from train import TrainingConfig, fit, load_dataset, model_for

    dataset, training = load_dataset("digits"), TrainingConfig(epochs=10, seed=0)
    run = fit(dataset, Path("runs/digits"), model_for(dataset, training, z_dim=16), training)
    print(run.evaluations["test"].elbo_nats)  # nats an image

`Trainer` fits an epoch at a time, for a loop of one's own.

On the command line: `python -m train --help`.
"""

from train import _requirements  # noqa: F401 - checks, before anything else is imported

# isort: split
from train._architectures import architecture_of
from train._binarize import binarize, binarize_once
from train._config import Binarize, ModelConfig, Precision, TrainingConfig
from train._data import (
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
from train._device import select_device
from train._elbo import elbo_of_each, evaluate_elbo, evaluating
from train._errors import (
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
from train._evaluation import Evaluation, evaluate
from train._first_calls import make_first_calls
from train._fit import fit
from train._images import Images
from train._importance import importance_weighted_bound
from train._labels import check_label_values
from train._latents import COMPONENT_SITE, LATENT_SITE, LATENTS, Latent
from train._likelihoods import LIKELIHOODS, Likelihood
from train._mlflow import MlflowLog
from train._model_for import model_for
from train._networks import ARCHITECTURES, AbstractDecoder, AbstractEncoder, Decoder, Encoder
from train._objective import objective_of
from train._observer import Observer
from train._processes import Processes
from train._run import DatasetInfo, EpochMetrics, Run, RunConfig, load_run, newest_run, run_config
from train._run_writer import RunWriter
from train._tensorboard import TensorBoardLog
from train._terms import ElboTerms, GivenNoise, elbo_terms
from train._torchrun import joined
from train._trainer import Trainer
from train._vae import VAE

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
