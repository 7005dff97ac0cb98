"""The configuration of a model and of a training, as frozen dataclasses."""

from __future__ import annotations

import abc
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from .errors import ConfigError

Binarize = Literal["none", "threshold", "stochastic"]
Schedule = Literal["constant", "cosine", "plateau"]
Precision = Literal["fp32", "bf16"]

MAX_SEED = 2**32 - 1
"""The largest seed: `pyro.set_rng_seed` seeds NumPy too, which takes 32 bits."""


class AnyModelConfig(abc.ABC):
    """What is trained: a `ModelConfig`, or the `ProgramConfig` of a program of your own.

    Attributes:
        data_shape: Shape of one observation.
        num_classes: Number of classes of the labels that the model sees, 0 for no labels.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]  # each kind is a dataclass
    data_shape: tuple[int, ...]
    num_classes: int

    @property
    @abc.abstractmethod
    def description(self) -> str:
        """The model in a few words."""

    @property
    def data_dim(self) -> int:
        """Number of values in one observation, the product of `data_shape`."""
        return math.prod(self.data_shape)


@dataclasses.dataclass(frozen=True)
class ProgramConfig(AnyModelConfig):
    """A Pyro program of your own, by its place; `program_for` makes one for a data set.

    A run stores the place, not the code: loading, resuming or exporting a run imports the program again.

    Args:
        program: `FILE.py:NAME` or `module:NAME`, see `--program`. A path is kept absolute.
        data_shape: Shape of one observation: the model's argument `x` has shape `(batch, *data_shape)`.
        num_classes: Number of classes of the labels, its argument `y`; 0 where it gets no labels.
    """

    program: str
    data_shape: tuple[int, ...]
    num_classes: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "program", _with_absolute_path(self.program))  # frozen: there is no other way

    @property
    def description(self) -> str:
        """The program's name and file."""
        source, _, name = self.program.rpartition(":")
        classes = f", {self.num_classes} classes" if self.num_classes else ""
        return f"{name} of {Path(source).name}{classes}"


@dataclasses.dataclass(frozen=True)
class ModelConfig(AnyModelConfig):
    """Everything needed to build a model, except its weights.

    Args:
        data_shape: Shape of one observation, `(channels, height, width)` for images.
        z_dim: Number of latent dimensions, at least 1.
        hidden_dim: Width of the hidden layers of both networks, at least 1.
        architecture: The networks: `mlp`, `conv`, or classes of your own, `module:Encoder,Decoder` or
            `path/nets.py:Encoder,Decoder`; `architecture_of` returns the name of classes. A path is kept absolute.
        likelihood: p(x|z): `bernoulli`, `continuous-bernoulli`, `normal` or `categorical`.
        levels: Number of discrete values of the `categorical` likelihood, at least 2.
        latent: p(z): `normal`, `hierarchical` or `mixture`.
        upper_dims: Sizes of a hierarchy's levels above z, the lowest first; empty for the other latents.
        components: Number of components of a `mixture`, at least 2.
        num_classes: Number of classes of the labels that both networks see, 0 for no labels.
        data_loc: Mean of the data, for likelihoods that standardise: one number, or one for each of the `data_dim`
            values of an observation, as for the columns of a table.
        data_scale: Standard deviation of the data, in the same form; positive. `standardisation_of` computes both.
        architecture_options: Arguments of the constructors of networks of your own, by name; each network gets those
            that it takes.

    Raises:
        ConfigError: A size is too small, or does not go with the architecture or the latent.
    """

    data_shape: tuple[int, ...]
    z_dim: int = 50
    hidden_dim: int = 400
    architecture: str = "mlp"
    likelihood: str = "bernoulli"
    levels: int = 8
    data_loc: float | tuple[float, ...] = 0.0
    data_scale: float | tuple[float, ...] = 1.0
    latent: str = "normal"
    upper_dims: tuple[int, ...] = ()
    components: int = 10
    num_classes: int = 0
    architecture_options: Mapping[str, bool | int | float | str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "architecture", _with_absolute_path(self.architecture))  # frozen: no other way
        if not self.data_shape or min(self.data_shape) < 1:
            raise ConfigError(f"data_shape must hold sizes of at least 1, got {self.data_shape}")
        for name in ("z_dim", "hidden_dim"):
            _at_least(1, name, getattr(self, name))
        _at_least(2, "levels", self.levels)
        _at_least(2, "components", self.components)
        _at_least(0, "num_classes", self.num_classes)
        if (self.latent == "hierarchical") != bool(self.upper_dims) or min(self.z_dims) < 1:
            raise ConfigError(
                "a hierarchical latent has two or more sizes of at least 1, like z_dims 32,16, any other latent has "
                f"one; got latent {self.latent} with z_dims {','.join(map(str, self.z_dims))}"
            )
        _check_standardisation(self.data_loc, self.data_scale, self.data_dim)
        if self.architecture == "conv" and not (len(self.data_shape) == 3 and min(self.data_shape[1:]) >= 4):
            raise ConfigError(
                f"architecture conv needs images, shape (channels, height, width) of at least 4 by 4, "
                f"got {self.data_shape}; mlp takes any shape"
            )

    @property
    def architecture_name(self) -> str:
        """The architecture without the folders of a path, which mean nothing on other machines."""
        source, separator, classes = self.architecture.rpartition(":")
        return f"{Path(source).name}{separator}{classes}"

    @property
    def z_dims(self) -> tuple[int, ...]:
        """Sizes of the levels, `z_dim` first."""
        return (self.z_dim, *self.upper_dims)

    @property
    def description(self) -> str:
        """The networks and their sizes, the likelihood, the latent, the number of classes."""
        sizes = "-".join(map(str, (self.data_dim, self.hidden_dim, *self.z_dims)))
        latent = f"mixture of {self.components}" if self.latent == "mixture" else f"{self.latent} latent"
        classes = f", {self.num_classes} classes" if self.num_classes else ""
        return f"{self.architecture_name} VAE {sizes}, {self.likelihood}, {latent}{classes}"


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How a model is fitted.

    Args:
        epochs: Passes over the training images, at least 1.
        batch_size: Images a step, at least 1; the last batch of an epoch may be smaller, and a single last image joins
            the batch before.
        learning_rate: Adam's step size, positive.
        schedule: How the learning rate changes: `constant`; `cosine`, down to 0 at the end of the last epoch; or
            `plateau`, halved whenever the validation ELBO has not improved for `plateau_epochs`.
        lr_warmup: Epochs over which the learning rate rises linearly to its value; 0 for none.
        plateau_epochs: See `schedule`; at least 1.
        patience: Epochs without a better validation ELBO after which the training ends, 0 for never. Epochs are
            compared by a mean that outliers hardly change, `validation_elbo_robust_nats` of `EpochMetrics`.
        clip_norm: Largest norm of the gradient of a batch's mean loss; larger ones are scaled down to it. 0 for none.
        free_bits: Nats of each latent dimension's KL, averaged over a batch, that cost nothing (Kingma et al., 2016);
            0 for none. Only for the latent `normal`, whose KL has a closed form.
        seed: Seed of the initial weights, of the order of the images and of the noise, 0 to 2**32 - 1.
        jit: Compile the ELBO with `JitTrace_ELBO`; in float32, and not for a mixture.
        beta: Weight of the KL in the objective, positive; 1 is the ELBO.
        beta_warmup: Epochs over which beta rises in equal steps to its value, 0 for none; not with `jit`, which fixes
            the weight at the first step.
        num_particles: Draws of z an image and step, at least 1.
        binarize: `none` leaves grey values; `threshold` makes them 0 or 1 at one half; `stochastic` draws 0 or 1 with
            the grey value as probability, anew in each epoch.
        precision: Of the networks in training: `fp32`, or `bf16` by autocast, faster on a device with fast bfloat16
            instructions. Weights, densities and evaluations stay in float32.
        tf32: On a CUDA device, round the factors of products to TF32's 10 bits: faster, less exact than the CPU.

    Raises:
        ConfigError: A value is out of its range.
    """

    epochs: int = 100
    batch_size: int = 256
    learning_rate: float = 1e-3
    schedule: Schedule = "constant"
    lr_warmup: int = 0
    plateau_epochs: int = 5
    patience: int = 0
    clip_norm: float = 0.0
    free_bits: float = 0.0
    seed: int = 0
    jit: bool = False
    beta: float = 1.0
    beta_warmup: int = 0
    num_particles: int = 1
    binarize: Binarize = "none"
    precision: Precision = "fp32"
    tf32: bool = False

    def __post_init__(self) -> None:
        _at_least(1, "epochs", self.epochs)
        _at_least(1, "batch_size", self.batch_size)
        _at_least(1, "num_particles", self.num_particles)
        for name in ("beta_warmup", "lr_warmup", "patience"):
            _at_least(0, name, getattr(self, name))
        _at_least(1, "plateau_epochs", self.plateau_epochs)
        for name in ("learning_rate", "beta"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} must be a positive number, got {value}")
        for name in ("clip_norm", "free_bits"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} must be a number of at least 0, got {value}")
        if self.jit:
            self._check_jit()
        for name, kind in (("binarize", Binarize), ("schedule", Schedule), ("precision", Precision)):
            choices = get_args(kind)
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"seed must be between 0 and {MAX_SEED}, got {self.seed}")

    def learning_rate_at(self, progress: float, halvings: int = 0) -> float:
        """Return the learning rate of a step.

        Args:
            progress: Epochs completed at the end of the step, fractions included; above 0.
            halvings: How often a plateau has halved the rate.
        """
        rate = self.learning_rate * 0.5**halvings
        if progress < self.lr_warmup:
            return rate * progress / self.lr_warmup
        if self.schedule == "cosine":
            after = (progress - self.lr_warmup) / max(self.epochs - self.lr_warmup, 1)
            return rate * (1 + math.cos(math.pi * min(after, 1.0))) / 2
        return rate

    def beta_at(self, epoch: int) -> float:
        """Return the weight of the KL in an epoch, counted from 1. Its warm-up begins above 0."""
        return self.beta * min(1.0, epoch / self.beta_warmup) if self.beta_warmup else self.beta

    def halvings_after(self, validation_elbos: Sequence[float]) -> int:
        """Return how often the schedule `plateau` has halved the learning rate, from the validation ELBO of each epoch.

        Any other schedule halves nothing.
        """
        if self.schedule != "plateau":
            return 0
        best, waited, halvings = -math.inf, 0, 0
        for elbo in validation_elbos:
            best, waited = (elbo, 0) if elbo > best else (best, waited + 1)
            if waited == self.plateau_epochs:
                halvings, waited = halvings + 1, 0
        return halvings

    def is_finished(self, validation_elbos: Sequence[float]) -> bool:
        """Return whether the last `patience` epochs brought no better validation ELBO."""
        if not self.patience or not validation_elbos:
            return False
        best = validation_elbos.index(max(validation_elbos))  # the first of equals
        return len(validation_elbos) - 1 - best >= self.patience

    def _check_jit(self) -> None:
        if self.beta_warmup or self.free_bits:
            other = "beta_warmup" if self.beta_warmup else "free_bits"
            raise ConfigError(
                f"jit and {other} do not go together: compiling fixes the objective at the first step; drop one"
            )
        if self.precision != "fp32":
            raise ConfigError(f"jit and precision {self.precision} do not go together in PyTorch; drop one")


def _with_absolute_path(place: str) -> str:
    """Return `FILE.py:NAME` with an absolute path, and any other place as it is."""
    source, separator, name = place.rpartition(":")
    return f"{Path(source).expanduser().resolve()}:{name}" if separator and source.endswith(".py") else place


def _at_least(minimum: int, name: str, value: int) -> None:
    if value < minimum:
        raise ConfigError(f"{name} must be at least {minimum}, got {value}")


def _check_standardisation(
    data_loc: float | tuple[float, ...], data_scale: float | tuple[float, ...], data_dim: int
) -> None:
    for name, value in (("data_loc", data_loc), ("data_scale", data_scale)):
        if isinstance(value, tuple) and len(value) != data_dim:
            raise ConfigError(f"{name} must be one number or one for each of {data_dim} values, got {len(value)}")
    locs = data_loc if isinstance(data_loc, tuple) else (data_loc,)
    scales = data_scale if isinstance(data_scale, tuple) else (data_scale,)
    for loc, scale in itertools.zip_longest(locs, scales, fillvalue=1.0):
        if not (math.isfinite(loc) and math.isfinite(scale) and scale > 0):
            raise ConfigError(f"data_loc must be finite and data_scale positive, got {loc} and {scale}")
