"""The ELBO of each observation and its terms, and the importance-weighted bound on log p(x).

No function here changes the model, Pyro's parameter store or PyTorch's random generators.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Normal as NormalDistribution
from torch.nn import functional

from .data import Images
from .device import choose_mkl_kernels, forked_rng
from .errors import ConfigError
from .latents import COMPONENT_SITE, LATENT_SITE, Hierarchical, Latent, Mixture, kl_to_standard_normal, site_names
from .likelihoods import Bernoulli, Likelihood
from .networks import check_label_values
from .objective import objective_of

if TYPE_CHECKING:
    from .trainable import Trainable
    from .vae import VAE

ACTIVE_VARIANCE = 0.01
"""Variance of E_q(z|x)[z] over the observations above which a latent unit is active (Burda et al., 2016)."""

_SEED = 0
_BATCH_SIZE = 1024

NUM_OUTLIERS = 16
"""How many rows with the lowest ELBO a run keeps, with which an export is verified."""

VALUES_AT_ONCE = {"cpu": 2**20, "cuda": 2**27}
"""Decoder outputs that the importance-weighted bound keeps in memory at once; on a CPU they fit its cache."""

_MAX_LOGIT = math.log1p(-torch.finfo(torch.float32).eps) - math.log(torch.finfo(torch.float32).eps)
"""PyTorch's Bernoulli clamps probabilities at a distance of float32's epsilon from 0 and 1; this is the logit there."""


@dataclasses.dataclass(frozen=True, eq=False)
class ElboTerms:
    """The terms of the ELBO for one draw of z, in nats, shape `(batch,)` each, and the draw.

    Args:
        log_px_z: log p(x|z).
        log_pz: log p(z), of all levels of a hierarchy; a mixture's component is summed out.
        log_qz_x: log q(z|x), of all levels of a hierarchy.
        z: The draw of each level, shape `(batch, size of the level)`, that of z first.
        z_loc: Means of what each level was drawn from.
        z_scale: Their standard deviations.
    """

    log_px_z: Tensor
    log_pz: Tensor
    log_qz_x: Tensor
    z: tuple[Tensor, ...]
    z_loc: tuple[Tensor, ...]
    z_scale: tuple[Tensor, ...]

    @property
    def elbo(self) -> Tensor:
        """log_px_z + log_pz - log_qz_x, shape `(batch,)`."""
        return self.log_px_z + self.log_pz - self.log_qz_x


class GivenNoise(Messenger):
    """Gives Pyro's latent sites the values loc + scale * eps, for given noise.

    Args:
        eps: Noise of each level, shape `(batch, size of the level)`, that of z first.
        z: The value of z in place of its noise.
    """

    def __init__(self, eps: Sequence[Tensor], z: Tensor | None = None) -> None:
        super().__init__()
        self._eps = dict(zip(site_names(len(eps)), eps, strict=True))
        self._z = z

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == LATENT_SITE and self._z is not None:
            msg["value"], msg["done"] = self._z, True
        elif msg["name"] in self._eps:
            normal = msg["fn"].base_dist
            msg["value"] = normal.loc + normal.scale * self._eps[msg["name"]]
            msg["done"] = True


def elbo_terms(vae: VAE, x: Tensor, eps: Sequence[Tensor], y: Tensor | None = None) -> ElboTerms:
    """Return the ELBO's terms of each observation.

    Args:
        vae: The model; in evaluation mode log p(x|z) is computed from the decoder's parameters, as a bundle does.
        x: Observations, shape `(batch, ...)`.
        eps: Noise of each level, shape `(batch, size of the level)`, that of z first.
        y: Labels, shape `(batch,)`, for a conditional model.
    """
    # The user's own networks may register parameters with Pyro.
    with pyro.get_param_store().scope(), pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Encountered", category=UserWarning)  # NaN is the caller's to handle
        guide = poutine.trace(GivenNoise(eps)(vae.sample_posterior)).get_trace(x, y)
        model = _replayed(objective_of(vae, registered=False)[0], guide, x, y)
    latents = _terms(guide, model, len(eps))
    return dataclasses.replace(latents, log_px_z=model.nodes["obs"]["log_prob"])


def _replayed(model: Callable[..., Any], guide: Any, *arguments: Any) -> Any:
    """Return the model's trace for the latents of the guide's, both with log-probabilities; a mixture is enumerated."""
    trace = poutine.trace(poutine.replay(poutine.enum(model, first_available_dim=-2), guide)).get_trace(*arguments)
    guide.compute_log_prob()
    trace.compute_log_prob()
    return trace


def _terms(guide: Any, model: Any, num_levels: int) -> ElboTerms:
    """Return the latents' terms of two traces; log_px_z is 0."""
    levels: list[Any] = [guide.nodes[name] for name in site_names(num_levels)]
    log_pz = _sum(model.nodes[level["name"]]["log_prob"] for level in levels)
    if COMPONENT_SITE in model.nodes:
        log_pz = torch.logsumexp(log_pz + model.nodes[COMPONENT_SITE]["log_prob"], dim=0)
    log_qz_x = _sum(level["log_prob"] for level in levels)
    return ElboTerms(
        log_px_z=torch.zeros_like(log_qz_x),
        log_pz=log_pz,
        log_qz_x=log_qz_x,
        z=tuple(level["value"] for level in levels),
        z_loc=tuple(level["fn"].base_dist.loc for level in levels),
        z_scale=tuple(level["fn"].base_dist.scale for level in levels),
    )


def guide_trace(latent: Latent, z_loc: Tensor, z_scale: Tensor, eps: Sequence[Tensor], z: Tensor | None = None) -> Any:
    """Return Pyro's trace of q(z|x) from what the encoder gave.

    Args:
        latent: The latent.
        z_loc: Means, shape `(batch, z_dim)`.
        z_scale: Standard deviations, of the same shape.
        eps: Noise of each level, shape `(batch, size of the level)`, that of z first.
        z: A value of z in place of its noise.
    """
    with IndepMessenger("data", len(z_loc)):
        return poutine.trace(GivenNoise(eps, z)(latent.sample_posterior)).get_trace(z_loc, z_scale)


def latent_terms(
    latent: Latent, z_loc: Tensor, z_scale: Tensor, eps: Sequence[Tensor], z: Tensor | None = None
) -> ElboTerms:
    """Return the latents' terms from what the encoder gave, for the arguments of `guide_trace`; log_px_z is 0."""

    def model() -> None:
        with IndepMessenger("data", len(z_loc)):
            latent.sample_prior(z_loc)

    guide = guide_trace(latent, z_loc, z_scale, eps, z)
    return _terms(guide, _replayed(config_enumerate(model) if latent.enumerated else model, guide), len(eps))


def draw_prior(latent: Latent, eps: Sequence[Tensor], component: Tensor | None = None) -> Tensor:
    """Return z of the prior, shape `(batch, z_dim)`.

    Args:
        latent: The latent.
        eps: Noise of each level, shape `(batch, size of the level)`, that of z first.
        component: Component of each row, integers of shape `(batch,)`, for a mixture.
    """
    given = {} if component is None else {COMPONENT_SITE: component}
    with IndepMessenger("data", len(eps[0])):
        z: Tensor = GivenNoise(eps)(poutine.condition(latent.sample_prior, data=given))(eps[0])
    return z


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum(0)


def kl_of_dims(latent: Latent, terms: ElboTerms) -> Tensor:
    """Return the KL of each dimension of z, in nats, float64, shape `(batch, z_dim)`.

    A `normal` latent has KL(q(z_d|x) ‖ N(0, 1)) = (z_loc² + z_scale² - 1) / 2 - log z_scale, whose sum over the
    dimensions is the whole KL. The other two are estimated from the draw of z:

    - `hierarchical`: log q(z_d|x) - log p(z_d|z_2), of z's own level. The levels above add to the whole KL. A
      dimension's estimate may be negative, because q(z|x) does not depend on z_2 and p(z|z_2) does.
    - `mixture`: log q(z_d|x) - log Σ_c p(c) N(z_d; loc_cd, scale_cd²), against the marginal of p(z) in this dimension.
      Its mean is a KL and tells how much a dimension is used. The sum is not the whole KL, because the components make
      the dimensions dependent.

    Args:
        latent: The latent of the model.
        terms: The ELBO's terms of a batch.
    """
    z, loc, scale = (level[0].double() for level in (terms.z, terms.z_loc, terms.z_scale))
    log_qz_x = _log_normal(z, loc, scale)
    if isinstance(latent, Hierarchical):
        return log_qz_x - _log_normal(z, *latent.downward[0](terms.z[1]))
    if isinstance(latent, Mixture):
        given_c = _log_normal(z[:, None], latent.loc, latent.log_scale.exp())
        return log_qz_x - torch.logsumexp(torch.log_softmax(latent.logits, dim=0)[:, None] + given_c, dim=1)
    return kl_to_standard_normal(loc, scale)


def _log_normal(z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    log_density: Tensor = NormalDistribution(loc, scale, validate_args=False).log_prob(z)
    return log_density


@dataclasses.dataclass(frozen=True, eq=False)
class RowTerms:
    """The ELBO of each row of a batch for one draw of z, and its parts, in nats.

    Args:
        elbo: Shape `(batch,)`.
        reconstruction: log p(x|z), shape `(batch,)`.
        kl_of_dims: The KL of each dimension of z, float64, shape `(batch, num_units)`.
        z_loc: Means of q(z|x), float64, shape `(batch, num_units)`.
    """

    elbo: Tensor
    reconstruction: Tensor
    kl_of_dims: Tensor
    z_loc: Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class ElboByImage:
    """The ELBO of each image of a set, and its parts, in nats, float64, on the model's device.

    Args:
        elbo: The ELBO of each image, shape `(num_images,)`.
        reconstruction: E_q[log p(x|z)] of each image, shape `(num_images,)`.
        kl_per_dim: Mean over the images of each latent dimension's KL, see `kl_of_dims`, shape `(z_dim,)`.
        z_loc_variance: Variance of E_q(z|x)[z] over the images, shape `(z_dim,)`; of z's first level.
        num_particles: Draws of z an image, over which the means are taken.
    """

    elbo: Tensor
    reconstruction: Tensor
    kl_per_dim: Tensor
    z_loc_variance: Tensor
    num_particles: int

    @property
    def kl(self) -> Tensor:
        """KL(q(z|x) ‖ p(z)) of each image, estimated from the same draws: reconstruction - elbo."""
        return self.reconstruction - self.elbo

    @property
    def active_units(self) -> int:
        """Dimensions with Var_x(E_q(z|x)[z]) > 0.01 (Burda, Grosse & Salakhutdinov, 2016)."""
        return int((self.z_loc_variance > ACTIVE_VARIANCE).sum())


def evaluate_elbo(vae: Trainable, images: Images, num_particles: int = 1, labels: Tensor | None = None) -> float:
    """Return the mean of `elbo_of_each`, in nats an image."""
    return float(elbo_of_each(vae, images, num_particles, labels).mean())


def elbo_of_each(vae: Trainable, images: Images, num_particles: int = 1, labels: Tensor | None = None) -> Tensor:
    """Return the ELBO of each image, in nats, float64, shape `(num_images,)`; see `evaluate_each`."""
    return evaluate_each(vae, images, labels, num_particles).elbo


def evaluate_each(vae: Trainable, images: Images, labels: Tensor | None = None, num_particles: int = 1) -> ElboByImage:
    """Return the ELBO of each image and its parts.

    The noise has a fixed seed, so that epochs and runs compare. Statistics that layers keep in training are not
    updated. The ELBO of an image so far from the training data that float32 overflows is NaN or infinite; such an image
    is left out of the KL of each dimension and of the variance of its mean.

    Args:
        vae: The model.
        images: Shape `(num_images, ...)`; slices of it are taken, and moved to the model's device.
        labels: Shape `(num_images,)`, for a conditional model.
        num_particles: Draws of z an image, over which the mean is taken, at least 1.

    Raises:
        ConfigError: `num_particles` is less than 1.
        LabelError: The labels do not fit the model.
    """
    check_label_values(labels, len(images), vae.config.num_classes)
    check_particles(num_particles)
    device = device_of(vae)
    elbo, reconstruction = torch.zeros((2, len(images)), dtype=torch.float64, device=device)
    kl, loc, squared = torch.zeros((3, vae.num_units), dtype=torch.float64, device=device)
    draws = torch.zeros((), dtype=torch.float64, device=device)
    with evaluating(vae), forked_rng(device):
        torch.manual_seed(_SEED)
        for _ in range(num_particles):
            for rows in slices(len(images), _BATCH_SIZE):
                x, y = images[rows].to(device), None if labels is None else labels[rows].to(device)
                terms = vae.terms(x, y)
                elbo[rows] += terms.elbo
                reconstruction[rows] += terms.reconstruction
                finite = torch.isfinite(terms.elbo + terms.kl_of_dims.sum(1) + terms.z_loc.sum(1))
                kl += terms.kl_of_dims[finite].sum(0)
                loc += terms.z_loc[finite].sum(0)
                squared += terms.z_loc[finite].square().sum(0)
                draws += finite.sum()
    variance = squared / draws - (loc / draws).square()
    return ElboByImage(elbo / num_particles, reconstruction / num_particles, kl / draws, variance, num_particles)


def lowest(elbos: Tensor, count: int) -> Tensor:
    """Return the indices of the lowest ELBOs, the lowest first; those that are not finite are below all numbers.

    Args:
        elbos: Shape `(num_images,)`.
        count: How many, at most.
    """
    return comparable(elbos).argsort(stable=True)[:count]


def comparable(elbos: Tensor) -> Tensor:
    """Return ELBOs of which those that float32 cannot hold, NaN and both infinities, are -inf."""
    return torch.where(torch.isfinite(elbos), elbos, -torch.inf)


def check_particles(num_particles: int) -> None:
    """Raise `ConfigError` if `num_particles` is less than 1."""
    if num_particles < 1:
        raise ConfigError(f"num_particles must be at least 1, got {num_particles}")


def device_of(vae: Trainable) -> torch.device:
    """Return the device of the model's weights."""
    return next(vae.parameters()).device


def slices(count: int, size: int) -> Iterator[slice]:
    """Yield slices of `size` rows that cover `count` rows; the last one may be smaller."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


@contextlib.contextmanager
def evaluating(vae: Trainable) -> Iterator[None]:
    """Put the model into evaluation mode, without gradients; restore its mode afterwards."""
    choose_mkl_kernels()
    training = vae.training
    vae.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        vae.train(training)


def importance_weighted_bound(
    vae: Trainable,
    images: Images,
    labels: Tensor | None = None,
    num_particles: int = 5000,
    on_part: Callable[[int], None] | None = None,
) -> Tensor:
    """Return the importance-weighted bound on log p(x) of each image (Burda, Grosse & Salakhutdinov, 2016).

    L_k = E[log 1/k Σ_i p(x, z_i) / q(z_i|x)], z_1 to z_k drawn from q(z|x). L_1 is the ELBO; L_k rises with k to
    log p(x). It equals Pyro's `RenyiELBO(alpha=0, num_particles=k)`. The noise has a fixed seed. The encoder runs once
    an image and the decoder k times, in batches, so that memory does not grow with k.

    Args:
        vae: The model.
        images: Shape `(num_images, ...)`; slices of it are taken, and moved to the model's device.
        labels: Shape `(num_images,)`, for a conditional model, whose bound is on log p(x|y).
        num_particles: k, at least 1.
        on_part: Called after each part with the number of images done; an exception from it ends the computation.

    Returns:
        The bounds in nats, float64, shape `(num_images,)`, on the model's device.

    Raises:
        ConfigError: `num_particles` is less than 1.
        LabelError: The labels do not fit the model.
    """
    check_label_values(labels, len(images), vae.config.num_classes)
    check_particles(num_particles)
    device = device_of(vae)
    at_once = max(1, VALUES_AT_ONCE[device.type] // vae.values_a_row)
    bounds = torch.empty(len(images), dtype=torch.float64, device=device)
    with pyro.get_param_store().scope(), evaluating(vae), forked_rng(device), pyro.validation_enabled(False):
        torch.manual_seed(_SEED)
        for rows in slices(len(images), at_once):
            x, y = images[rows].to(device), None if labels is None else labels[rows].to(device)
            bounds[rows] = _bounds(vae.weigher(x, y), num_particles, max(1, at_once // len(x)))
            if on_part is not None:
                on_part(rows.stop)
    return bounds


def _bounds(weigh: Callable[[int], Tensor], num_particles: int, at_once: int) -> Tensor:
    """Return the bound of each row, with `at_once` particles in a batch."""
    parts = [
        torch.logsumexp(weigh(particles.stop - particles.start).double(), dim=0)
        for particles in slices(num_particles, at_once)
    ]
    return torch.logsumexp(torch.stack(parts), dim=0) - math.log(num_particles)


def log_weights(vae: VAE, x: Tensor, y: Tensor | None, q_z: tuple[Tensor, Tensor], eps: list[Tensor]) -> Tensor:
    """Return log_px_z + log_pz - log_qz_x of each particle and row, shape `(particles, batch)`.

    The same as `elbo_terms`, with what the encoder gave and without its work for each particle.
    """
    count, batch, _ = eps[0].shape
    z_loc, z_scale = (each.repeat(count, 1) for each in q_z)
    latents = latent_terms(vae.latent, z_loc, z_scale, [noise.flatten(0, 1) for noise in eps])
    outputs = vae.decoder.outputs_at(latents.z[0], None if y is None else y.repeat(count))
    log_px_z = _log_px_z(vae.decoder.likelihood, outputs.unflatten(0, (count, batch)), x)
    return log_px_z + (latents.log_pz - latents.log_qz_x).unflatten(0, (count, batch))


def _log_px_z(likelihood: Likelihood, outputs: Tensor, x: Tensor) -> Tensor:
    """Return log p(x|z), shape `(particles, batch)`, from the decoder's outputs, `(particles, batch, numbers)`."""
    if type(likelihood) is Bernoulli:
        # x log p + (1 - x) log(1 - p) = x logit - log(1 + exp(logit)), which takes fewer passes over memory
        logits = outputs.clamp(-_MAX_LOGIT, _MAX_LOGIT)
        log_normaliser = functional.softplus(logits).sum(-1)
        return logits.mul_(x).sum(-1) - log_normaliser
    log_density: Tensor = likelihood.distribution(outputs).log_prob(x)
    return log_density.sum(-1)
