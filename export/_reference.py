"""What Pyro itself computes, for a bundle's reference."""

from __future__ import annotations

import warnings

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor

from export._errors import ExportError
from runtime import BATCH_SIZES, Reference
from train import VAE

_ROWS = max(BATCH_SIZES)
_SEED = 0


def make_reference(vae: VAE, samples: Tensor) -> Reference:
    """Compute the reference: samples, then all zeros and all ones, 256 rows together.

    Args:
        vae: The model, on the CPU.
        samples: Observations, shape `(num_samples, *data_shape)` in [0, 1]; at least one. Fewer than 254 are repeated.

    Raises:
        ExportError: The model's own outputs are not finite.
    """
    rows = samples.flatten(1)
    picked = rows[torch.arange(_ROWS - 2) % len(rows)]
    x = torch.cat([picked, torch.zeros_like(rows[:1]), torch.ones_like(rows[:1])])
    eps = torch.randn((_ROWS, vae.config.z_dim), generator=torch.Generator().manual_seed(_SEED))
    with torch.no_grad():
        z_loc, z_scale = vae.encoder(x)
        z = z_loc + z_scale * eps
        loc_img = vae.decoder(z)
        elbo = pyro_elbo(vae, x, z)
    for name, output in (("z_loc", z_loc), ("z_scale", z_scale), ("loc_img", loc_img), ("elbo", elbo)):
        if not torch.isfinite(output).all():
            raise ExportError(
                f"Pyro's own {name} holds NaN or infinity: the weights are damaged, train the model again"
            )
    case = np.array([*["sample"] * (_ROWS - 2), "zeros", "ones"])
    arrays = (tensor.numpy() for tensor in (x, eps, z_loc, z_scale, z, loc_img, elbo))
    return Reference(case, *arrays)


def pyro_elbo(vae: VAE, x: Tensor, z: Tensor) -> Tensor:
    """Return log p(x|z) + log p(z) - log q(z|x) of each row, in nats, from Pyro's traces of model and guide at `z`."""
    with pyro.get_param_store().scope(), pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Encountered", category=UserWarning)  # NaN is the caller's to judge
        guide = poutine.trace(poutine.condition(vae.guide, data={"latent": z})).get_trace(x)
        model = poutine.trace(poutine.condition(vae.model, data={"latent": z})).get_trace(x)
        guide.compute_log_prob()
        model.compute_log_prob()
    elbo: Tensor = (
        model.nodes["obs"]["log_prob"] + model.nodes["latent"]["log_prob"] - guide.nodes["latent"]["log_prob"]
    )
    return elbo
