"""What Pyro itself computes, for a bundle's reference."""

from __future__ import annotations

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor

from runtime import BATCH_SIZES, Reference
from train import VAE

_ROWS = max(BATCH_SIZES)
_SEED = 0


def make_reference(vae: VAE, samples: Tensor) -> Reference:
    """Compute the reference: all zeros, all ones, then samples, 256 rows together.

    Args:
        vae: The model, on the CPU.
        samples: Observations, shape `(num_samples, *data_shape)` in [0, 1]; at least one. Fewer than 254 are repeated.
    """
    rows = samples.flatten(1)
    picked = rows[torch.arange(_ROWS - 2) % len(rows)]
    x = torch.cat([torch.zeros_like(rows[:1]), torch.ones_like(rows[:1]), picked])
    eps = torch.randn((_ROWS, vae.config.z_dim), generator=torch.Generator().manual_seed(_SEED))
    with torch.no_grad():
        z_loc, z_scale = vae.encoder(x)
        z = z_loc + z_scale * eps
        loc_img = vae.decoder(z)
        elbo = pyro_elbo(vae, x, z)
    case = np.array(["zeros", "ones", *["sample"] * (_ROWS - 2)])
    arrays = (tensor.numpy() for tensor in (x, eps, z_loc, z_scale, z, loc_img, elbo))
    return Reference(case, *arrays)


def pyro_elbo(vae: VAE, x: Tensor, z: Tensor) -> Tensor:
    """Return log p(x|z) + log p(z) - log q(z|x) of each row, in nats, from Pyro's traces of model and guide at `z`."""
    with pyro.get_param_store().scope():
        guide = poutine.trace(poutine.condition(vae.guide, data={"latent": z})).get_trace(x)
        model = poutine.trace(poutine.condition(vae.model, data={"latent": z})).get_trace(x)
    guide.compute_log_prob()
    model.compute_log_prob()
    elbo: Tensor = (
        model.nodes["obs"]["log_prob"] + model.nodes["latent"]["log_prob"] - guide.nodes["latent"]["log_prob"]
    )
    return elbo
