"""The numbers that papers report of a model on a set of images."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from .config import Binarize, TrainingConfig
from .elbo import EachEvaluated, evaluate_each, importance_weighted_bound
from .errors import DatasetError
from .data import Images
from .vae import VAE


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A model on a set of images: means over the images, in nats an image. elbo = reconstruction - kl.

    Args:
        elbo_nats: The evidence lower bound; higher is better.
        reconstruction_nats: E_q[log p(x|z)].
        kl_nats: KL(q(z|x) ‖ p(z)), of all levels, estimated from the same draws as the ELBO.
        kl_per_dim_nats: What each dimension of z's first level costs; for a `normal` latent the closed form, whose sum
            is `kl_nats` without the noise of the draws. `_kl` says what it is for the other latents; its sum is
            not the whole KL there.
        active_units: Dimensions of z's first level with Var_x(E_q(z|x)[z]) > 0.01 (Burda et al., 2016).
        num_images: How many images there were.
        num_particles: Draws of z an image, of which the mean is taken.
        iw_bound_nats: The importance-weighted bound on log p(x), at least the ELBO; `None` where it was not asked for.
        iw_particles: Draws of z an image in that bound, 0 where it was not asked for.
        num_in_set: How many images the set has, where these are only the first of them; else 0.
        binarize: What was made of grey values before, once: `none`, `threshold` or `stochastic`.
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

    @classmethod
    def of(cls, each: EachEvaluated, iw_bounds: Tensor | None = None, iw_particles: int = 0) -> Evaluation:
        """Return the means of what was found of each image.

        Args:
            each: Of at least one image.
            iw_bounds: The importance-weighted bound of each, shape `(num_images,)`.
            iw_particles: The draws in it.
        """
        elbo, reconstruction = float(each.elbo.mean()), float(each.reconstruction.mean())
        return cls(
            elbo_nats=elbo,
            reconstruction_nats=reconstruction,
            kl_nats=reconstruction - elbo,
            kl_per_dim_nats=tuple(each.kl_per_dim.tolist()),
            active_units=each.active_units,
            num_images=len(each.elbo),
            num_particles=each.num_particles,
            iw_bound_nats=None if iw_bounds is None else float(iw_bounds.mean()),
            iw_particles=iw_particles,
        )


def evaluate(
    vae: VAE, images: Images, labels: Tensor | None = None, num_particles: int = 1, iw_particles: int = 0
) -> Evaluation:
    """Evaluate a model on images, with the noise of a fixed seed; nothing of the model or the process is touched.

    Args:
        vae: The model.
        images: Shape `(num_images, ...)`, at least one; binarized already, where the model was trained so.
        labels: Shape `(num_images,)`, for a conditional model.
        num_particles: Draws of z an image for the ELBO, at least 1.
        iw_particles: Draws of z an image for the importance-weighted bound, 0 to leave it out. Papers take 5,000.

    Raises:
        ConfigError: A number of particles is too small.
        DatasetError: There are no images.
        LabelError: The labels are not those of a model like this.
    """
    if not len(images):
        raise DatasetError("images must hold at least one image to evaluate on, got none")
    each = evaluate_each(vae, images, labels, num_particles)
    bounds = importance_weighted_bound(vae, images, labels, iw_particles) if iw_particles else None
    return Evaluation.of(each, bounds, iw_particles)


def collapse_advice(evaluation: Evaluation, training: TrainingConfig) -> str | None:
    """Say what to try if the posterior has collapsed: few latent units carry information about x.

    Args:
        evaluation: Of the trained model.
        training: How it was trained; advice that it followed already is left out.

    Returns:
        A sentence, or `None` if a quarter of the units are active, or ten.
    """
    units = len(evaluation.kl_per_dim_nats)
    if evaluation.num_images < 2 or evaluation.active_units >= min(10, units / 4):
        return None
    remedies = ["--beta-warmup 20"] * (not training.beta_warmup and not training.jit)
    remedies += ["--free-bits 0.1"] * (not training.free_bits and not training.jit)
    remedies += ["a smaller --batch-size", "more epochs"]
    return (
        f"{evaluation.active_units} of {units} latent units are active: the posterior has collapsed onto the prior for "
        f"the others; try {', '.join(remedies[:-1])} or {remedies[-1]}"
    )
