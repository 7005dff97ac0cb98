"""Evaluation: the ELBO of a fitted model, with nothing touched."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from train._device import forked_rng
from train._labels import check_label_values
from train._terms import elbo_terms
from train._vae import VAE

_SEED = 0
_BATCH_SIZE = 1024


def evaluate_elbo(vae: VAE, images: Tensor, num_particles: int = 1, labels: Tensor | None = None) -> float:
    """Return the mean of `elbo_of_each`, in nats an image.

    With one particle and 10,000 images of MNIST the estimate has a standard deviation of 0.03 nats.
    """
    return float(elbo_of_each(vae, images, num_particles, labels).double().mean())


def elbo_of_each(vae: VAE, images: Tensor, num_particles: int = 1, labels: Tensor | None = None) -> Tensor:
    """Return the ELBO of each image, in nats, shape `(num_images,)`.

    The noise is that of a fixed seed, so that epochs and runs compare. The weights, statistics that layers keep while
    training, Pyro's parameter store and PyTorch's generators are left as they were. A model that has diverged has an
    ELBO that is NaN or infinite.

    Args:
        vae: The model.
        images: Shape `(num_images, ...)`.
        num_particles: Draws of z an image, of which the mean is taken.
        labels: Shape `(num_images,)`, for a conditional model.

    Raises:
        LabelError: The labels are not those of a model like this.
    """
    check_label_values(labels, len(images), vae.config.num_classes)
    total = images.new_zeros(len(images), dtype=torch.float64)
    with evaluating(vae), forked_rng(images.device):
        torch.manual_seed(_SEED)
        for _ in range(num_particles):
            for start in range(0, len(images), _BATCH_SIZE):
                rows = slice(start, start + _BATCH_SIZE)
                x, y = images[rows], None if labels is None else labels[rows]
                eps = [torch.randn((len(x), size), device=x.device) for size in vae.config.z_dims]
                total[rows] += elbo_terms(vae, x, eps, y).elbo
    return total / num_particles


@contextlib.contextmanager
def evaluating(vae: VAE) -> Iterator[None]:
    """Put the model into evaluation mode, without gradients; afterwards it is back in the mode that it was in."""
    training = vae.training
    vae.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        vae.train(training)
