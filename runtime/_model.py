"""A bundle, loaded: the object that applications use."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _inputs
from ._bundle import Bundle
from ._errors import BundleError, InputError
from ._graph import Graph, usable_cpus
from ._latents import Latents, check_latent_space
from ._manifest import GraphName, Manifest
from ._noise import Noise
from ._posterior import Posterior, draw_noise
from ._providers import Provider, ProviderChoice, check_choice
from ._verification import Report, verify_graphs

FloatArray = NDArray[np.float32]

_MAX_THREADS = 1024


def load(path: str | os.PathLike[str], provider: ProviderChoice = "auto", threads: int | None = None) -> Model:
    """Load the bundle in the folder `path`.

    Args:
        path: The folder, with `manifest.json` in it.
        provider: `cpu`, `cuda`, or `auto`: CUDA where it truly works, else the CPU; `Model.provider` says which it is.
        threads: Threads inside one operator; by default as many as there are CPUs that this process may use.

    Raises:
        BundleError: The bundle is missing, damaged, changed, newer than this runtime, or does not fit its manifest.
        InputError: `provider` or `threads` is out of range.
        InstallError: ONNX Runtime is not installed.
        ProviderError: `provider` is `cuda`, and CUDA does not work here; the message says why.
    """
    check_choice(provider)
    if threads is not None and not 1 <= _inputs.count("threads", threads) <= _MAX_THREADS:
        raise InputError(f"threads must be from 1 to {_MAX_THREADS}, got {threads}; leave it out to use all CPUs")
    return Model(Bundle(path), provider, threads or usable_cpus())


class Model:
    """A trained VAE. Made by `load`; its methods keep no state, and the same arguments give the same numbers.

    Args:
        bundle: Where it comes from.
        provider: Where to run it.
        threads: Threads inside one operator.
    """

    def __init__(self, bundle: Bundle, provider: ProviderChoice, threads: int) -> None:
        self._bundle = bundle
        _check_sizes(bundle.manifest)
        self._encoder = Graph(bundle, "encoder", provider, threads)
        self._decoder = Graph(bundle, "decoder", provider, threads)
        self._reconstruct = Graph(bundle, "reconstruct", provider, threads)
        self._elbo = Graph(bundle, "elbo", provider, threads)

    def __repr__(self) -> str:
        return f"<Model {self.manifest.name!r} data_shape={self.data_shape} z_dim={self.z_dim} on {self.provider}>"

    @property
    def manifest(self) -> Manifest:
        """All that the bundle says about itself."""
        return self._bundle.manifest

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of one observation, `(channels, height, width)` for images."""
        return self.manifest.model.data_shape

    @property
    def z_dim(self) -> int:
        """Number of latent dimensions."""
        return self.manifest.model.z_dim

    @property
    def provider(self) -> Provider:
        """Where the model runs, `cpu` or `cuda`."""
        return self._reconstruct.provider

    def encode(self, x: ArrayLike) -> Posterior:
        """Return q(z|x), the approximate posterior of each row of `x`.

        Args:
            x: Observations, shape `(batch, data_dim)` or `(batch, *data_shape)`, for images of one channel also
                `(batch, height, width)`; float32 or float64, in [0, 1] unless the likelihood takes any range, or uint8
                in [0, 255], which is divided by 255.

        Returns:
            `z_loc` and `z_scale`, float32, shape `(batch, z_dim)` each; `z_scale` is a standard deviation, positive.

        Raises:
            InputError: `x` has another shape or dtype, holds NaN, or values out of range.
        """
        z_loc, z_scale = self._encoder(_inputs.observations(x, self.manifest.model))
        latent_space_id = self.manifest.latent_space_id
        return Posterior(Latents.of(z_loc, latent_space_id), z_scale, latent_space_id)

    def decode(self, z: ArrayLike) -> FloatArray:
        """Return `loc_img`, the mean of p(x|z): for a Bernoulli, the probability of each pixel.

        Args:
            z: Latents, shape `(batch, z_dim)`; float32 or float64, finite.

        Returns:
            float32 in the units of the data, shape `(batch, data_dim)`; `.reshape(-1, *model.data_shape)` makes images.

        Raises:
            InputError: `z` has another shape or dtype, is not finite, or is another model's: latents that a `Posterior`
                gave know their latent space.
        """
        check_latent_space(z, self.manifest.latent_space_id)
        return self._decoder(_inputs.latents(z, self.z_dim))[0]

    def reconstruct(self, x: ArrayLike, *, seed: int | None = None, eps: ArrayLike | None = None) -> FloatArray:
        """Encode `x`, sample z, and decode it.

        Args:
            x: Observations, as for `encode`.
            seed: Noise stream for z, the same as PyTorch's CPU generator: the result is that of
                `pyro.set_rng_seed(seed); vae.reconstruct_img(x)`. 0 to 2**64 - 1.
            eps: The noise itself, shape `(batch, z_dim)`. Without `seed` and `eps` there is none: z is `z_loc`.

        Returns:
            `loc_img`, float32 in the units of the data, shape `(batch, data_dim)`.

        Raises:
            InputError: An argument has another shape or dtype, or values out of range; or both `seed` and `eps`.
        """
        observed = _inputs.observations(x, self.manifest.model)
        shape = (len(observed), self.z_dim)
        noise = draw_noise(shape, seed, eps)
        return self._reconstruct(observed, np.zeros(shape, np.float32) if noise is None else noise)[0]

    def generate(self, n: int, seed: int) -> FloatArray:
        """Draw z from the prior N(0, I) and decode it.

        Args:
            n: How many, 0 or more.
            seed: Noise stream for z, the same as PyTorch's CPU generator: z is that of
                `torch.manual_seed(seed); torch.randn(n, z_dim)`. 0 to 2**64 - 1.

        Returns:
            `loc_img`, float32 in the units of the data, shape `(n, data_dim)`.

        Raises:
            InputError: `n` or `seed` is out of range.
        """
        return self._decoder(Noise(seed).standard_normal((_inputs.count("n", n), self.z_dim)))[0]

    def elbo(self, x: ArrayLike, seed: int, num_particles: int = 1) -> NDArray[np.float64]:
        """Estimate the evidence lower bound of each row, E_q[log p(x|z) + log p(z) - log q(z|x)].

        Args:
            x: Observations, as for `encode`.
            seed: Noise stream of the particles, drawn one after the other as Pyro's `Trace_ELBO(num_particles)` does.
            num_particles: Draws of z a row, at least 1.

        Returns:
            The mean over the particles, in nats, higher is better; shape `(batch,)`.

        Raises:
            InputError: An argument has another shape or dtype, or values out of range.
        """
        total: NDArray[np.float64] = functools.reduce(np.add, self._log_weights(x, seed, num_particles))
        return total / num_particles

    def log_likelihood(self, x: ArrayLike, seed: int, num_particles: int = 1000) -> NDArray[np.float64]:
        """Estimate log p(x) of each row from below, by importance weighting (Burda, Grosse & Salakhutdinov, 2016).

        Args:
            x: Observations, as for `encode`.
            seed: Noise stream of the particles, drawn one after the other.
            num_particles: Draws of z a row, at least 1; the bound rises to log p(x) with their number. Memory does not
                grow with it.

        Returns:
            log mean exp of the particles' log_px_z + log_pz - log_qz_x, in nats, shape `(batch,)`.

        Raises:
            InputError: An argument has another shape or dtype, or values out of range.
        """
        total: NDArray[np.float64] = functools.reduce(np.logaddexp, self._log_weights(x, seed, num_particles))
        return total - np.log(num_particles)

    def _log_weights(self, x: ArrayLike, seed: int, num_particles: int) -> Iterator[NDArray[np.float64]]:
        """Yield log_px_z + log_pz - log_qz_x, shape `(batch,)`, particle by particle."""
        if _inputs.count("num_particles", num_particles) == 0:
            raise InputError("num_particles must be at least 1, got 0")
        observed = _inputs.observations(x, self.manifest.model)
        z_loc, z_scale = self._encoder(observed)
        stream = Noise(seed)
        for _ in range(num_particles):
            z = z_loc + z_scale * stream.standard_normal(z_loc.shape)
            log_px_z, log_pz, log_qz_x = self._elbo(observed, z, z_loc, z_scale, *self._decoder(z))
            yield log_px_z.astype(np.float64) + log_pz - log_qz_x

    def verify(self) -> Report:
        """Compare this model, as it runs here, with what Pyro computed at export.

        Every output is compared at batch sizes 1, 2, 7 and 256, on samples of the data, on all zeros and all ones.

        Returns:
            The comparison; `report.passed` is the verdict, `print(report)` the table.

        Raises:
            BundleError: `reference.npz` is missing, changed, or damaged.
        """
        graphs: dict[GraphName, Graph] = {
            "encoder": self._encoder,
            "decoder": self._decoder,
            "reconstruct": self._reconstruct,
            "elbo": self._elbo,
        }
        return verify_graphs(self._bundle, "onnx", graphs)


def _check_sizes(manifest: Manifest) -> None:
    """Refuse a manifest whose graphs do not fit the model that it describes.

    Raises:
        BundleError: A graph has an input or output of another width.
    """
    data_dim, z_dim = manifest.model.data_dim, manifest.model.z_dim
    widths = {"x": data_dim, "loc_img": data_dim, "z": z_dim, "z_loc": z_dim, "z_scale": z_dim, "eps": z_dim}
    for name, graph in manifest.graphs.items():
        for tensor in (*graph.inputs, *graph.outputs):
            if tensor.name in widths and tensor.shape != ("batch", widths[tensor.name]):
                raise BundleError(
                    f"the manifest contradicts itself: {tensor.name} of {name} has shape {tensor.shape}, "
                    f"the model's sizes say {('batch', widths[tensor.name])}; export the model again"
                )
