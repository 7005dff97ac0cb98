"""What a finished training is worth, on each of its sets of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor

from .binarization import binarize_once
from .config import Binarize
from .data import Dataset, Images
from .elbo import evaluate_each
from .evaluation import Evaluation, evaluate
from .importance import importance_weighted_bound
from .vae import VAE

_PARTICLES = 10
"""Draws of z an image: ten times those after an epoch, a third of their noise."""

_NUM_TRAINING = 10_000
"""Training images, the first, that are looked at: enough to see how far they are from the rest."""


def final_evaluations(
    vae: VAE, dataset: Dataset[Images], binarize: Binarize, iw_particles: int, on_bound: Callable[[int], None]
) -> tuple[dict[str, Evaluation], Tensor]:
    """Evaluate a model on the test, the validation and the first of the training images.

    Args:
        vae: The model.
        dataset: Test and validation images binarized already, training images not; with the labels that the model sees.
        binarize: How they were, and training images are to be.
        iw_particles: Draws of z a test image for the importance-weighted bound, 0 to leave it out.
        on_bound: Is told of how many test images the bound is known; what it raises ends the evaluation.

    Returns:
        The evaluations by the name of the set, and the ELBO of each test image, in nats, shape `(num_test,)`.
    """
    each = evaluate_each(vae, dataset.test, dataset.test_labels, _PARTICLES)
    bounds = None
    if iw_particles:
        bounds = importance_weighted_bound(vae, dataset.test, dataset.test_labels, iw_particles, on_bound)
    some = binarize_once(dataset.train[:_NUM_TRAINING], binarize)
    labels = None if dataset.train_labels is None else dataset.train_labels[:_NUM_TRAINING]
    found = {
        "test": Evaluation.of(each, bounds, iw_particles),
        "train": evaluate(vae, some, labels, _PARTICLES),
    }
    if dataset.validation is not None:
        found["validation"] = evaluate(vae, dataset.validation, dataset.validation_labels, _PARTICLES)
    if len(some) < len(dataset.train):
        found["train"] = dataclasses.replace(found["train"], num_in_set=len(dataset.train))
    return {name: dataclasses.replace(part, binarize=binarize) for name, part in found.items()}, each.elbo
