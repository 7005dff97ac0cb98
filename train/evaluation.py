"""How good a model is on a set of observations: the ELBO, its parts, and whether the posterior has collapsed."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from .config import AnyModelConfig, Binarize, ModelConfig, TrainingConfig
from .data import Images, row_numbers
from .elbo import ElboByImage, comparable, evaluate_each, importance_weighted_bound, lowest
from .errors import DatasetError
from .trainable import Trainable

_ENOUGH_ACTIVE_UNITS = 8
_MIN_KL_NATS = 0.5
_NAMED = 10
_FENCE = 3.0


@dataclasses.dataclass(frozen=True)
class NotFinite:
    """Observations whose ELBO float32 cannot hold: they are too far from those that the model was fitted to.

    Args:
        count: How many.
        rows: The numbers of the first ten, see `row_numbers`.
    """

    count: int
    rows: tuple[int, ...]

    def sentence(self, name: str) -> str:
        """Say how many and which observations of the set `name` these are, without a full stop."""
        more = f" and {self.count - len(self.rows):,} more" if self.count > len(self.rows) else ""
        rows = f"{'row' if self.count == 1 else 'rows'} {', '.join(map(str, self.rows))}{more}"
        return (
            f"the ELBO of {self.count:,} of the {name} set is NaN or infinite, and left out of the means, because "
            f"float32 overflows so far from the training data: {rows}, counted from 0"
        )


@dataclasses.dataclass(frozen=True)
class ElboSummary:
    """The ELBOs of a set of observations, in nats an observation.

    Args:
        mean_nats: Mean of those that are finite; one outlier may change it by any amount.
        median_nats: Median of all, those that are not finite below all others.
        robust_nats: Mean of all, in which none counts for less than Q1 - 3 (Q3 - Q1), the outer fence of the quartiles
            (Tukey, "Exploratory Data Analysis", 1977). It is the plain mean where there are no outliers, and they
            hardly change it, up to a quarter of all; -inf if a quarter is not finite.
        not_finite: Those that are not finite; `None` if all are.
    """

    mean_nats: float
    median_nats: float
    robust_nats: float
    not_finite: NotFinite | None

    @classmethod
    def of(cls, elbos: Tensor, images: Images) -> ElboSummary:
        """Summarize.

        Args:
            elbos: Shape `(num_images,)`, at least one.
            images: Whose they are; they say what the rows are called.
        """
        rows = (~torch.isfinite(elbos)).nonzero().flatten()
        not_finite = NotFinite(len(rows), row_numbers(images, rows[:_NAMED])) if len(rows) else None
        order = comparable(elbos).sort().values
        lower, median, upper = (float(order[int(part * (len(order) - 1))]) for part in (0.25, 0.5, 0.75))
        robust = -math.inf if lower == -math.inf else float(order.clamp(min=lower - _FENCE * (upper - lower)).mean())
        return cls(_mean(elbos), median, robust, not_finite)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A model on a set of observations: means in nats an observation. elbo = reconstruction - kl.

    Observations whose ELBO is not finite are left out of the means.

    Args:
        elbo_nats: The evidence lower bound; higher is better.
        reconstruction_nats: E_q[log p(x|z)].
        kl_nats: KL(q(z|x) ‖ p(z)), of all levels, estimated from the same draws as the ELBO.
        kl_per_dim_nats: The KL of each dimension of z's first level, see `kl_of_dims`. For a `normal` latent it
            is the closed form, and the sum is `kl_nats` without the noise of the draws. For the other latents the sum
            is not the whole KL. Empty for a program whose latent is not one normal site.
        active_units: Of the dimensions in `kl_per_dim_nats`, those with Var_x(E_q(z|x)[z]) > 0.01 (Burda et al., 2016).
        num_images: Number of observations.
        num_particles: Draws of z an observation, over which the means are taken.
        iw_bound_nats: The importance-weighted bound on log p(x), at least the ELBO; `None` if it was not asked for.
        iw_particles: Draws of z an observation in that bound, 0 if it was not asked for.
        num_in_set: Size of the whole set if only its first `num_images` were evaluated; else 0.
        binarize: How grey values were binarized beforehand: `none`, `threshold` or `stochastic`.
        elbo_median_nats: The median of the ELBO, see `ElboSummary`.
        not_finite: The observations whose ELBO is not finite; `None` if all are.
        lowest_rows: The numbers of the ten observations with the lowest ELBO, the lowest first, see `row_numbers`.
    """

    elbo_nats: float
    reconstruction_nats: float
    kl_nats: float
    kl_per_dim_nats: tuple[float, ...]
    active_units: int
    num_images: int
    num_particles: int
    iw_bound_nats: float | None = None
    iw_particles: int = 0
    num_in_set: int = 0
    binarize: Binarize = "none"
    elbo_median_nats: float | None = None
    not_finite: NotFinite | None = None
    lowest_rows: tuple[int, ...] = ()

    @classmethod
    def of(
        cls, each: ElboByImage, images: Images, iw_bounds: Tensor | None = None, iw_particles: int = 0
    ) -> Evaluation:
        """Return the means over all images.

        Args:
            each: The terms of each image, at least one.
            images: The images.
            iw_bounds: The importance-weighted bound of each, shape `(num_images,)`.
            iw_particles: Draws of z an image in it.
        """
        elbos = ElboSummary.of(each.elbo, images)
        elbo, reconstruction = elbos.mean_nats, _mean(each.reconstruction[torch.isfinite(each.elbo)])
        return cls(
            elbo_nats=elbo,
            reconstruction_nats=reconstruction,
            kl_nats=reconstruction - elbo,
            kl_per_dim_nats=tuple(each.kl_per_dim.tolist()),
            active_units=each.active_units,
            num_images=len(each.elbo),
            num_particles=each.num_particles,
            iw_bound_nats=None if iw_bounds is None else _mean(iw_bounds),
            iw_particles=iw_particles,
            elbo_median_nats=elbos.median_nats,
            not_finite=elbos.not_finite,
            lowest_rows=row_numbers(images, lowest(each.elbo, _NAMED)),
        )


def _mean(values: Tensor) -> float:
    """Return the mean of the values that are finite."""
    return float(values[torch.isfinite(values)].mean())


def evaluate(
    vae: Trainable, images: Images, labels: Tensor | None = None, num_particles: int = 1, iw_particles: int = 0
) -> Evaluation:
    """Evaluate a model on images, with noise of a fixed seed; the model and the generators are left as they were.

    Args:
        vae: The model.
        images: Shape `(num_images, ...)`, at least one; binarized already, where the model was trained so.
        labels: Shape `(num_images,)`, for a conditional model.
        num_particles: Draws of z an image for the ELBO, at least 1.
        iw_particles: Draws of z an image for the importance-weighted bound, 0 to leave it out. Papers take 5,000.

    Raises:
        ConfigError: A number of particles is too small.
        DatasetError: There are no images.
        LabelError: The labels do not fit the model.
    """
    if not len(images):
        raise DatasetError("images must hold at least one image to evaluate on, got none")
    each = evaluate_each(vae, images, labels, num_particles)
    bounds = importance_weighted_bound(vae, images, labels, iw_particles) if iw_particles else None
    return Evaluation.of(each, images, bounds, iw_particles)


def collapse_advice(evaluation: Evaluation, training: TrainingConfig, model: AnyModelConfig) -> str | None:
    """Say what to try if the posterior has collapsed: q(z|x) equals the prior in almost all latent dimensions.

    That is so if fewer than a quarter of the units are active and fewer than 8 (a model with more dimensions than the
    data need leaves some inactive, which is no fault), or if z carries less than half a nat about x.

    Args:
        evaluation: Of the trained model; best on data that it was not trained on.
        training: How it was trained; remedies that do not apply to it are left out.
        model: What was trained.

    Returns:
        A sentence; `None` if the posterior has not collapsed, or if there is only one observation, or no unit is known.
    """
    units, active = len(evaluation.kl_per_dim_nats), evaluation.active_units
    if not units:
        return None
    few_active = active < min(_ENOUGH_ACTIVE_UNITS, units / 4)
    if evaluation.num_images < 2 or not (few_active or evaluation.kl_nats < _MIN_KL_NATS):
        return None
    found = f"{active} of {units} latent units {'is' if active == 1 else 'are'} active"
    if not few_active:
        found += f", and the KL is only {evaluation.kl_nats:.2f} nats"
    where = " for the others" if active and few_active else ""
    is_vae = isinstance(model, ModelConfig)
    remedies = ["more epochs", "a smaller --batch-size"]
    if training.beta > 1:
        remedies.append("--beta 1")
    if not training.jit:  # compiled steps allow neither of the two
        remedies += [] if training.beta_warmup else [f"--beta-warmup {max(1, training.epochs // 2)}"]
        remedies += [] if training.free_bits or not is_vae else ["--free-bits 0.1 (normal latent only)"]
    if active and few_active and is_vae:
        remedies.append("a smaller --z-dims if the data need no more")
    *first, last = remedies
    return f"{found}: the posterior has collapsed onto the prior{where}; try {', '.join(first)} or {last}"
