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
        parameters = vae.decoder.parameters_at(z)
        terms = elbo_terms(vae, x, z)
    tensors = {"x": x, "eps": eps, "z_loc": z_loc, "z_scale": z_scale, "z": z, **terms}
    tensors.update(zip(vae.decoder.likelihood.parameter_names, parameters, strict=True))
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ExportError(f"Pyro's own {name} holds NaN or infinity: the weights are damaged; train again")
    case = np.array([*["sample"] * (_ROWS - 2), "zeros", "ones"])
    return Reference(case, {name: tensor.contiguous().numpy() for name, tensor in tensors.items()})


def elbo_terms(vae: VAE, x: Tensor, z: Tensor) -> dict[str, Tensor]:
    """Return `log_px_z`, `log_pz` and `log_qz_x` of each row, in nats, from Pyro's traces of model and guide at `z`."""
    with pyro.get_param_store().scope(), pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Encountered", category=UserWarning)  # NaN is the caller's to judge
        guide = poutine.trace(poutine.condition(vae.guide, data={"latent": z})).get_trace(x)
        model = poutine.trace(poutine.condition(vae.model, data={"latent": z})).get_trace(x)
        guide.compute_log_prob()
        model.compute_log_prob()
    return {
        "log_px_z": model.nodes["obs"]["log_prob"],
        "log_pz": model.nodes["latent"]["log_prob"],
        "log_qz_x": guide.nodes["latent"]["log_prob"],
    }
