"""Fit a Pyro VAE with SVI.

    from pathlib import Path
    import torch
    from train import ModelConfig, Trainer, TrainingConfig, evaluate_elbo, load_dataset

    dataset = load_dataset("digits")
    trainer = Trainer(ModelConfig(dataset.data_shape), TrainingConfig(seed=0), torch.device("cpu"))
    for _ in range(10):
        loss = trainer.fit_epoch(dataset.train)  # nats an image
    print(evaluate_elbo(trainer.vae, dataset.test))

On the command line: `python -m train --help`.
"""

from train import _requirements  # noqa: F401 - checks, before anything else is imported

# isort: split
from train._binarize import binarize, binarize_once
from train._config import Binarize, ModelConfig, TrainingConfig
from train._datasets import DATASET_NAMES, Dataset, DatasetName, load_dataset
from train._device import select_device
from train._elbo import elbo_of_each, evaluate_elbo, evaluating
from train._errors import ConfigError, DatasetError, DeviceError, DivergedError, LabelError, RunError, TrainError
from train._fit import Progress, fit
from train._labels import check_label_values
from train._latents import COMPONENT_SITE, LATENT_SITE, LATENTS, Latent
from train._likelihoods import LIKELIHOODS, Likelihood
from train._networks import ARCHITECTURES, AbstractDecoder, AbstractEncoder, Decoder, Encoder
from train._objective import objective_of
from train._run import DatasetInfo, EpochMetrics, Run, RunConfig, RunWriter, load_run, newest_run, run_config
from train._terms import ElboTerms, GivenNoise, elbo_terms
from train._trainer import Trainer
from train._vae import VAE

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
    "GivenNoise",
    "LabelError",
    "Latent",
    "Likelihood",
    "ModelConfig",
    "Progress",
    "Run",
    "RunConfig",
    "RunError",
    "RunWriter",
    "TrainError",
    "Trainer",
    "TrainingConfig",
    "binarize",
    "binarize_once",
    "check_label_values",
    "elbo_of_each",
    "elbo_terms",
    "evaluate_elbo",
    "evaluating",
    "fit",
    "load_dataset",
    "load_run",
    "newest_run",
    "objective_of",
    "run_config",
    "select_device",
]
