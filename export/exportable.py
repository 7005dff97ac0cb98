"""A trained model as the export sees it: its functions, and what Pyro computes for given data and noise."""

from __future__ import annotations

import abc
import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgevae import GraphName, ModelSpec, level_names
from edgevae.train import VAE, Images, elbo_of_each, elbo_terms, evaluating
from edgevae.train.elbo import draw_prior
from edgevae.train.programs import Observed, Program, make_programs, model_spec, rest_of_guide

FloatArray = NDArray[np.float32]


class Exportable(abc.ABC):
    """A trained model on the CPU.

    Args:
        spec: Choices and sizes, as the manifest says them.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    @property
    @abc.abstractmethod
    def programs(self) -> Mapping[GraphName, Program]:
        """The functions of a bundle, by name."""

    @abc.abstractmethod
    def weights(self) -> Mapping[str, Tensor]:
        """Return the weights by name."""

    @property
    def latent_space_id(self) -> str:
        """SHA-256 of the weights, which identifies the latent space: latents of other models do not fit."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.weights().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()


class ExportableVAE(Exportable):
    """A model with one observed site, and latents that a bundle knows. Shapes are those of the bundle."""

    @abc.abstractmethod
    def elbo_of_each(self, x: Images, y: Tensor | None = None, num_particles: int = 1) -> Tensor:
        """Return the ELBO of each row in nats, shape `(batch,)`, from noise of a fixed seed."""

    @abc.abstractmethod
    def outputs(self, x: Tensor, y: Tensor | None, eps: list[Tensor], eps_obs: Tensor) -> dict[str, Tensor]:
        """Return inputs and outputs of all functions by name, as Pyro computes them.

        Args:
            x: Observations, shape `(batch, data_dim)`.
            y: Labels, shape `(batch,)`, for a conditional model.
            eps: Standard normal noise of each level, shape `(batch, size)`, that of z first.
            eps_obs: Standard normal noise of the observations, shape `(batch, data_dim)`. Values at which rounding
                would change a draw may come back moved.
        """

    # What the card's pictures need, as a loaded bundle has it

    @property
    @abc.abstractmethod
    def component_probs(self) -> FloatArray:
        """p(c) of a mixture's components, shape `(components,)`; empty for other latents."""

    @abc.abstractmethod
    def generate(self, n: int, seed: int, *, y: Any = None, component: Any = None) -> FloatArray:
        """Return the means for `n` draws of the prior, those of `Model.generate` from the same seed."""

    def decode(self, z: Any, *, y: Any = None) -> FloatArray:
        """Return the observations' means for latents, shape `(count, data_dim)`."""
        given = [as_tensor(z), *([] if y is None else [as_tensor(y)])]
        with torch.no_grad():
            outputs = self.programs["decoder"].module(*given)
        loc_img: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
        return loc_img.numpy()


class TrainedVAE(ExportableVAE):
    """A VAE of `edgevae.train`.

    Args:
        vae: The model, on the CPU. It is used as it is, not copied.
    """

    def __init__(self, vae: VAE) -> None:
        super().__init__(model_spec(vae))
        self.vae = vae

    @functools.cached_property
    def programs(self) -> Mapping[GraphName, Program]:
        """The functions of a bundle, by name."""
        return make_programs(self.vae)

    def weights(self) -> Mapping[str, Tensor]:
        """Return the weights by name."""
        return self.vae.state_dict()

    def elbo_of_each(self, x: Images, y: Tensor | None = None, num_particles: int = 1) -> Tensor:
        """Return the ELBO of each row in nats, shape `(batch,)`, from noise of a fixed seed."""
        return elbo_of_each(self.vae, x, num_particles, y)

    def outputs(self, x: Tensor, y: Tensor | None, eps: list[Tensor], eps_obs: Tensor) -> dict[str, Tensor]:
        """Return inputs and outputs of all functions by name, as Pyro's traces have them."""
        vae, observed = self.vae, Observed(self.vae)
        with evaluating(vae), pyro.validation_enabled(False):
            terms = elbo_terms(vae, x, eps, y)
            p_x = vae.decoder.likelihood.distribution(vae.decoder.outputs_at(terms.z[0], y))
            tensors = {"x": x, **observed.parameters(p_x)}
            for name, levels in (("z_loc", terms.z_loc), ("z_scale", terms.z_scale), ("eps", eps)):
                tensors.update(zip(level_names(name, len(eps)), levels, strict=True))
            tensors.update(z=terms.z[0], log_px_z=terms.log_px_z, log_pz=terms.log_pz, log_qz_x=terms.log_qz_x)
            if observed.has_draws:
                eps_obs = away_from_steps(functools.partial(observed.draw, p_x), eps_obs)
                tensors["obs"] = observed.draw(p_x, eps_obs)
            tensors.update(eps_obs=eps_obs, **self._prior(eps))
            if vae.latent.enumerated:
                (tensors["component_probs"],) = rest_of_guide(vae.latent, terms.z_loc[0], terms.z_scale[0], eps)
        return tensors if y is None else {**tensors, "y": y}

    def _prior(self, eps: list[Tensor]) -> Mapping[str, Tensor]:
        """Return z of the prior; for a mixture also the component and p(c)."""
        latent = self.vae.latent
        if not latent.enumerated:
            return {"z_prior": draw_prior(latent, eps)}
        component = torch.arange(len(eps[0])) % self.vae.config.components
        probs = latent.component_probs.expand(len(eps[0]), -1)
        return {"z_prior": draw_prior(latent, eps, component), "component": component, "prior_probs": probs}

    @property
    def component_probs(self) -> FloatArray:
        """p(c) of a mixture's components, shape `(components,)`; empty for other latents."""
        return np.asarray(self.vae.latent.component_probs.detach(), np.float32)

    @torch.no_grad()
    def generate(self, n: int, seed: int, *, y: Any = None, component: Any = None) -> FloatArray:
        """Return the means for `n` draws of the prior, those of `Model.generate` from the same seed."""
        generator, latent = torch.Generator().manual_seed(seed), self.vae.latent
        drawn: Tensor | None = None
        if latent.enumerated:
            below = latent.component_probs.cumsum(0)[:-1]
            uniform = torch.rand(n, generator=generator) if component is None else None
            drawn = as_tensor(component) if uniform is None else torch.searchsorted(below, uniform, right=True)
        levels = [torch.randn((n, size), generator=generator) for size in reversed(self.vae.config.z_dims)]
        return self.decode(draw_prior(latent, levels[::-1], drawn), y=y)


def exportable(model: VAE | ExportableVAE) -> ExportableVAE:
    """Return a model as the export sees it."""
    return TrainedVAE(model) if isinstance(model, VAE) else model


def latent_space_id(vae: VAE) -> str:
    """Return the SHA-256 of the weights, which identifies the latent space: latents of other models do not fit."""
    return TrainedVAE(vae).latent_space_id


GRID = 16
"""The noise of observations is rounded to sixteenths, which compress well."""

_MOSTLY = 0.5
_MARGIN = 1e-4  # distance of that noise from the steps of a discrete draw


def away_from_steps(draw: Callable[[Tensor], Tensor], eps: Tensor) -> Tensor:
    """Move the noise of a discrete draw away from its steps, where the result would depend on rounding."""
    for _ in range(GRID):
        stays = draw(eps - _MARGIN) == draw(eps + _MARGIN)
        if stays.float().mean() < _MOSTLY:  # the distribution is continuous
            break
        eps = torch.where(stays, eps, eps + 1 / GRID)
    return eps


def as_tensor(array: Any) -> Tensor:
    """Return an array or a tensor as a tensor; latents lose their class."""
    return array if isinstance(array, Tensor) else torch.from_numpy(np.array(array))
