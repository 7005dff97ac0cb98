"""The choices that make a model and a training, as frozen dataclasses."""

from __future__ import annotations

import dataclasses
import math

from train._errors import ConfigError

MAX_SEED = 2**32 - 1
"""The largest seed of a training: `pyro.set_rng_seed` seeds NumPy too, which takes 32 bits."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The model's dimensions: all that is needed to build it again before its weights are loaded.

    Args:
        data_shape: Shape of one observation, `(channels, height, width)` for images.
        z_dim: Number of latent dimensions, at least 1.
        hidden_dim: Width of the hidden layer of both networks, at least 1.

    Raises:
        ConfigError: A size is below 1.
    """

    data_shape: tuple[int, ...]
    z_dim: int = 50
    hidden_dim: int = 400

    def __post_init__(self) -> None:
        if not self.data_shape or min(self.data_shape) < 1:
            raise ConfigError(f"data_shape must hold sizes of at least 1, got {self.data_shape}")
        for name in ("z_dim", "hidden_dim"):
            _at_least(1, name, getattr(self, name))

    @property
    def data_dim(self) -> int:
        """Number of values in one observation, the product of `data_shape`."""
        return math.prod(self.data_shape)


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How the model is fitted.

    Args:
        epochs: Passes over the training images, at least 1.
        batch_size: Images a step, at least 1; the last batch of an epoch may be smaller.
        learning_rate: Adam's step size, positive.
        seed: Seed of the initial weights, of the order of the images and of the noise, 0 to 2**32 - 1.
        jit: Compile the ELBO with `JitTrace_ELBO`.

    Raises:
        ConfigError: A value is out of its range.
    """

    epochs: int = 100
    batch_size: int = 256
    learning_rate: float = 1e-3
    seed: int = 0
    jit: bool = False

    def __post_init__(self) -> None:
        _at_least(1, "epochs", self.epochs)
        _at_least(1, "batch_size", self.batch_size)
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ConfigError(f"learning_rate must be a positive number, got {self.learning_rate}")
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"seed must be between 0 and {MAX_SEED}, got {self.seed}")


def _at_least(minimum: int, name: str, value: int) -> None:
    if value < minimum:
        raise ConfigError(f"{name} must be at least {minimum}, got {value}")
