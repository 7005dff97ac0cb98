"""A model's configuration for a data set."""

from __future__ import annotations

import dataclasses
from typing import Any

from .binarization import binarize_once
from .config import ModelConfig, TrainingConfig
from .data import Dataset, Images, check_range, standardisation_of
from .errors import LabelError
from .likelihoods import LIKELIHOODS


def model_for(
    dataset: Dataset[Images], training: TrainingConfig, *, conditional: bool = False, **choices: Any
) -> ModelConfig:
    """Return the configuration of a model of `dataset`: its shape, its classes, and how it is standardised.

    Rows of a table are standardised by column, images by one mean and one scale; where the likelihood is for values in
    [0, 1], neither is.

    Args:
        dataset: What the model is to be fitted to.
        training: How; where it binarizes, what is standardised is binarized.
        conditional: Whether both networks see the labels, which the data set must have then.
        **choices: The other fields of `ModelConfig`.

    Raises:
        ConfigError: The choices make no model of such data.
        DatasetError: The values are not in the range of the likelihood.
        LabelError: The model is to see labels, and there are none.
    """
    num_classes = dataset.num_classes if conditional else 0
    if conditional and num_classes == 0:
        raise LabelError(f"a conditional model needs labels, and {dataset.name} was loaded without any")
    model = ModelConfig(dataset.data_shape, num_classes=num_classes, **choices)
    unit_interval = LIKELIHOODS[model.likelihood].unit_interval if model.likelihood in LIKELIHOODS else True
    for images in (dataset.train, dataset.validation, dataset.test):
        if images is not None:
            check_range(images, unit_interval)
    if unit_interval:
        return model
    how = training.binarize
    train = dataset.train if how == "none" else binarize_once(dataset.train[:], how)
    data_loc, data_scale = standardisation_of(train, per_feature=len(dataset.data_shape) == 1)
    return dataclasses.replace(model, data_loc=data_loc, data_scale=data_scale)
