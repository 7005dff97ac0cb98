"""Models from their configuration."""

from __future__ import annotations

from torch import Tensor

from .config import AnyModelConfig, ModelConfig, ProgramConfig
from .errors import ConfigError
from .program.model import ProgramModel
from .trainable import Trainable
from .vae import VAE


def make_model(config: AnyModelConfig, example: tuple[Tensor, Tensor | None] | None = None) -> Trainable:
    """Return a model with new weights, on the CPU.

    Args:
        config: What it is.
        example: Some observations, shape `(rows, *data_shape)`, and their labels where the model sees labels. A Pyro
            program is run with them to see what it consists of; a VAE needs none.

    Raises:
        ConfigError: There is no such model, or a program got no example.
    """
    if isinstance(config, ModelConfig):
        return VAE(config)
    if isinstance(config, ProgramConfig) and example is not None:
        return ProgramModel(config, *example)
    raise ConfigError(f"{config.description} is a Pyro program, which needs rows to run with: give an example")
