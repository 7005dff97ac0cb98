"""Models that many tests evaluate."""

from __future__ import annotations

from typing import Any

import torch

from edgevae.train import VAE, EpochMetrics, ModelConfig

METRICS = [
    EpochMetrics(epoch, 40 - epoch, -39 + epoch, 1, 0.5, learning_rate=1e-3 / epoch, validation_elbo_nats=-38 + epoch)
    for epoch in range(1, 11)
]

SMALL = ModelConfig((1, 8, 8), z_dim=5, hidden_dim=16)

LATENTS: list[dict[str, Any]] = [
    {},
    {"latent": "hierarchical", "upper_dims": (3, 2)},
    {"latent": "mixture", "components": 4},
]


def spread(config: ModelConfig, seed: int = 7) -> VAE:
    """A model with weights so large that each layer affects the output."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        vae = VAE(config).eval()
        with torch.no_grad():
            for parameter in vae.parameters():
                parameter.mul_(1 if config.upper_dims else 2)  # a hierarchy's scales would overflow
    return vae


def model(shape: tuple[int, ...] = (1, 8, 8), **choices: Any) -> VAE:
    with torch.random.fork_rng([]):
        torch.manual_seed(7)
        return VAE(ModelConfig(shape, z_dim=4, hidden_dim=12, **choices)).eval()
