"""The importance-weighted bound on log p(x)."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import torch
from torch import Tensor
from torch.nn import functional

from .data import Images
from .device import forked_rng
from .elbo import check_particles, device_of, evaluating, slices
from .labels import check_label_values
from .likelihoods import Bernoulli, Likelihood
from .vae import VAE

_SEED = 0
_VALUES_AT_ONCE = {"cpu": 2**20, "cuda": 2**27}
"""Numbers of the decoder's last layer that are in memory at once: on a CPU they stay in its cache."""

_MAX_LOGIT = math.log1p(-torch.finfo(torch.float32).eps) - math.log(torch.finfo(torch.float32).eps)
"""The logit of the largest probability that PyTorch's Bernoulli scores: it clamps those nearer to 0 and 1."""


def importance_weighted_bound(
    vae: VAE,
    images: Images,
    labels: Tensor | None = None,
    num_particles: int = 5000,
    on_part: Callable[[int], None] | None = None,
) -> Tensor:
    """Return the importance-weighted bound on log p(x) of each image (Burda, Grosse & Salakhutdinov, 2016).

    L_k = E[log 1/k Σ_i p(x, z_i) / q(z_i|x)], z_1 to z_k drawn from q(z|x). L_1 is the ELBO; L_k rises with k to
    log p(x). It is Pyro's `RenyiELBO(alpha=0, num_particles=k)`, with the noise of a fixed seed: the encoder runs once
    an image, the decoder k times, on as many rows at once as fit into a bound of memory that does not grow with k.

    Args:
        vae: The model. Its weights and mode, Pyro's parameter store and PyTorch's generators are left as they were.
        images: Shape `(num_images, ...)`; slices of it are taken, and moved to the model's device.
        labels: Shape `(num_images,)`, for a conditional model; the bound is on log p(x|y) then.
        num_particles: k, at least 1.
        on_part: Is told after each part of the images how many are done; what it raises ends the computation.

    Returns:
        The bounds in nats, float64, shape `(num_images,)`, on the model's device.

    Raises:
        ConfigError: `num_particles` is less than 1.
        LabelError: The labels are not those of a model like this.
    """
    check_label_values(labels, len(images), vae.config.num_classes)
    check_particles(num_particles)
    device = device_of(vae)
    numbers = vae.config.data_dim * vae.decoder.likelihood.num_outputs
    at_once = max(1, _VALUES_AT_ONCE[device.type] // numbers)
    bounds = torch.empty(len(images), dtype=torch.float64, device=device)
    with pyro.get_param_store().scope(), evaluating(vae), forked_rng(device), pyro.validation_enabled(False):
        torch.manual_seed(_SEED)
        for rows in slices(len(images), at_once):
            x, y = images[rows].to(device), None if labels is None else labels[rows].to(device)
            bounds[rows] = _bounds(vae, x, y, num_particles, max(1, at_once // len(x)))
            if on_part is not None:
                on_part(rows.stop)
    return bounds


def _bounds(vae: VAE, x: Tensor, y: Tensor | None, num_particles: int, at_once: int) -> Tensor:
    """The bound of each row, `at_once` particles together."""
    q_z = vae.encoder(x, y)
    observed = vae.decoder.likelihood.observed(x.flatten(1))
    total = x.new_full((len(x),), -math.inf, dtype=torch.float64)
    for particles in slices(num_particles, at_once):
        count = particles.stop - particles.start
        eps = [torch.randn((count, len(x), size), device=x.device) for size in vae.config.z_dims]
        log_weight = _log_weight(vae, observed, y, q_z, eps).double()
        total = torch.logaddexp(total, torch.logsumexp(log_weight, dim=0))
    return total - math.log(num_particles)


def _log_weight(vae: VAE, observed: Tensor, y: Tensor | None, q_z: tuple[Tensor, Tensor], eps: list[Tensor]) -> Tensor:
    """log_px_z + log_pz - log_qz_x of each particle and row, shape `(particles, batch)`.

    These are `elbo_terms`, said by the latent's and the decoder's own functions instead of Pyro's traces.
    """
    count, batch, _ = eps[0].shape
    z_loc, z_scale = (each.repeat(count, 1) for each in q_z)
    z_eps, *upper_eps = (noise.flatten(0, 1) for noise in eps)
    z = z_loc + z_scale * z_eps
    log_pz, log_qz_x = vae.latent.log_densities(z, z_loc, z_scale, *upper_eps)
    outputs = vae.decoder.outputs_at(z, None if y is None else y.repeat(count))
    log_px_z = _log_px_z(vae.decoder.likelihood, outputs.unflatten(0, (count, batch)), observed)
    return log_px_z + (log_pz - log_qz_x).unflatten(0, (count, batch))


def _log_px_z(likelihood: Likelihood, outputs: Tensor, observed: Tensor) -> Tensor:
    """Log p(x|z), shape `(particles, batch)`, from the decoder's last numbers, `(particles, batch, numbers)`."""
    if type(likelihood) is Bernoulli:
        # x log p + (1 - x) log(1 - p) = x logit - log(1 + exp(logit)): two passes, where probabilities take seven
        logits = outputs.clamp(-_MAX_LOGIT, _MAX_LOGIT)
        log_normaliser = functional.softplus(logits).sum(-1)
        return logits.mul_(observed).sum(-1) - log_normaliser
    parameters = likelihood.parameters_of(outputs.flatten(0, 1))
    unflattened = tuple(each.unflatten(0, outputs.shape[:2]) for each in parameters)
    log_density: Tensor = likelihood.distribution(unflattened).log_prob(observed)
    return log_density.sum(-1)
