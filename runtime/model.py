"""A bundle, loaded: `load`, and the `Model` that applications use."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import inputs as _inputs
from .bundle import Bundle
from .errors import BundleError, InputError
from .inputs import Observations
from .manifest import GraphName, Manifest, Precision, check_signatures, level_names
from .noise import Noise, stream_of
from .posterior import (
    Latents,
    Level,
    Posterior,
    check_latent_space,
    draw_lower_noise,
    draw_noise,
    draw_prior,
    level_space,
    prior_probs,
)
from .providers import Execution, ProviderOptions
from .scores import (
    MAX_DRAWS,
    SCORE_PARTICLES,
    SCORE_SEED,
    Eps,
    Nats,
    Score,
    Terms,
    particle_noise,
    particles,
    posterior_draws,
)
from .session import Graphs
from .streaming import BLOCK_ROWS, RowNoise, Rows, paired, row_batches
from .verify import Report, verify_graphs, verify_reduced

_Model = TypeVar("_Model", bound="Model")
FloatArray = NDArray[np.float32]

_MAX_STEPS = 2**20
_ACTIVE = 0.01
"""A dimension is active if the variance of its posterior mean over the data is larger (Burda et al., 2016)."""


def load(
    path: str | os.PathLike[str],
    provider: str = "auto",
    threads: int | None = None,
    *,
    providers: Sequence[ProviderOptions] | None = None,
    session_options: Any = None,
    precision: Precision = "fp32",
    public_key: str | os.PathLike[str] | bytes | None = None,
) -> Model:
    """Load the bundle in the folder `path`.

    Args:
        path: The folder, with `manifest.json` in it.
        provider: `cpu`, `cuda`, or another of ONNX Runtime's execution providers, like `openvino`, `tensorrt`, `coreml`
            or `xnnpack`; `auto` is CUDA if it works here, else the CPU. `Model.provider` says which one was chosen.
        threads: Threads of a call. They share each operator; on the CPU, with more than 256 rows for each thread, each
            takes a part of the rows instead. Default: the CPUs that this process may use, by affinity and by the
            container's quota.
        providers: Instead of `provider`, ONNX Runtime's own names in order of preference, with or without options, like
            `[("OpenVINOExecutionProvider", {"device_type": "GPU"})]`. Each of them must work.
        session_options: An `onnxruntime.SessionOptions` for all sessions. It sets the number of threads, so `threads`
            must not be given.
        precision: `fp32`, or `fp16` or `int8` if the bundle has it: `manifest.precisions` says which there are, and
            what each loses. In `int8` the rows of a batch share a scale, so a row's numbers depend on the others a
            little.
        public_key: Ed25519 public key of the bundle's signer: the path of a PEM file, or PEM as bytes. A bundle that
            was not signed with its private key, or was altered later, is refused before any of it is decoded.

    Raises:
        BundleError: The bundle is missing, damaged, changed, newer than this runtime, or does not fit its manifest.
        InputError: An argument is out of range, or two of them contradict each other.
        InstallError: ONNX Runtime is not installed; or, for `public_key`, the package `cryptography`.
        ProviderError: A provider that was asked for does not work here, or runs no part of this model.
        SignatureError: The bundle was not signed with the private key of `public_key`.
    """
    bundle = Bundle(path, public_key)
    execution = Execution.of(provider, threads, providers, session_options)
    return Model(open_graphs(bundle, execution, precision, by_site=False))


def open_graphs(bundle: Bundle, execution: Execution, precision: Precision, *, by_site: bool) -> Graphs:
    """Open the graphs of a bundle.

    Args:
        bundle: The bundle.
        execution: Where to run.
        precision: Of the networks.
        by_site: Whether the bundle must hold a program that is used by its sites, or a model that is not.

    Raises:
        BundleError: It holds no ONNX graphs, or those of the other kind, or it does not fit its manifest.
    """
    if not bundle.manifest.graphs:
        there = ", ".join(bundle.manifest.torch_files)
        raise BundleError(f"{bundle.path} has no ONNX graphs, only {there}; export it again with --format onnx")
    if (program := bundle.manifest.model.program) is not None and not by_site:
        sites = ", ".join(site.name for site in program.sites)
        raise BundleError(
            f"{bundle.path} holds a Pyro program that is used by its sites, {sites}; load it with "
            "edgevae.load_program(path)"
        )
    if program is None and by_site:
        raise BundleError(
            f"{bundle.path} holds a model with one latent and one observed site; load it with edgevae.load(path)"
        )
    check_signatures(bundle.manifest)
    return Graphs(bundle, execution, precision)


def threshold_of(manifest: Manifest, rate: float) -> float:
    """Return the ELBO, in nats, that a fraction `rate` of the test rows lies below.

    Raises:
        InputError: `rate` is out of range, or the bundle holds no quantiles of the test rows' ELBO.
    """
    if manifest.dataset is None or not manifest.dataset.elbo_quantiles:
        raise InputError("this bundle holds no distribution of test images; compare score(x).elbo with your own data")
    probabilities, values = zip(*manifest.dataset.elbo_quantiles, strict=True)
    rate = _inputs.number("rate", rate)
    if not probabilities[0] <= rate <= probabilities[-1]:
        raise InputError(f"rate must be from {probabilities[0]} to {probabilities[-1]}, got {rate}")
    return float(np.interp(rate, probabilities, values))


class Model:
    """A trained VAE. Made by `load`; its methods keep no state, and the same arguments give the same numbers.

    `encode`, `decode`, `reconstruct`, `generate` and `verify` are the basic methods. `elbo`, `log_likelihood`, `score`,
    `threshold`, `is_anomaly` and `posterior_predictive` use the likelihood. `interpolate`, `traverse` and
    `active_units` explore the latent space. `reconstruct_batches` takes more data than fits into memory.

    `seed` is an integer from 0 to 2**64 - 1 that names the noise stream of one call; or a `Noise`, which continues
    where the last call left it, like PyTorch's generator. One model serves many threads. It pickles as the path of its
    bundle, is closed by `close()` or a `with` block, and must be loaded again in a forked process.

    If the model is conditional, each method takes the labels `y`: integers from 0 to `num_classes - 1`, shape
    `(batch,)`, or one for all rows.

    Args:
        graphs: The graphs of the model's bundle.
    """

    def __init__(self, graphs: Graphs) -> None:
        self._bundle = graphs.bundle
        self._graphs = graphs
        self._spec = graphs.bundle.manifest.model
        self._z_dim = self._spec.z_dim
        self._latent_space_id = graphs.bundle.manifest.latent_space_id
        self._observations = Observations(self._spec, graphs.bundle.manifest.preprocessing)
        locs, scales = (level_names(name, len(self._spec.z_dims)) for name in ("z_loc", "z_scale"))
        spaces = [level_space(self.latent_space_id, level) for level in range(1, len(locs) + 1)]
        self._level_outputs = list(zip(locs, scales, spaces, strict=True))

    def __reduce__(self) -> tuple[type[Model], tuple[Graphs]]:
        return type(self), (self._graphs,)

    def __repr__(self) -> str:
        sizes = f"data_shape={self.data_shape} z_dim={self.z_dim}"
        return f"<{type(self).__name__} {self.manifest.name!r} {sizes} on {self.provider}>"

    @property
    def manifest(self) -> Manifest:
        """The content of the bundle's `manifest.json`."""
        return self._bundle.manifest

    @property
    def latent_space_id(self) -> str:
        """Name of the latent space: the same for all bundles of the same weights. Latents carry it."""
        return self._latent_space_id

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of one observation, `(channels, height, width)` for images."""
        return self._spec.data_shape

    @property
    def z_dim(self) -> int:
        """Number of dimensions of z, which `decode` takes."""
        return self._z_dim

    @property
    def num_classes(self) -> int:
        """Number of labels of a conditional model; 0 for any other."""
        return self._spec.num_classes

    @property
    def component_probs(self) -> FloatArray:
        """p(c) of a mixture's components, float32, shape `(components,)`; empty for the other latents."""
        return prior_probs(self._spec, self._graphs["prior"]) if self._spec.num_components else np.empty(0, np.float32)

    @property
    def provider(self) -> str:
        """Where the model runs: `cpu`, `cuda`, or another of ONNX Runtime's providers."""
        return self._graphs.provider

    @property
    def precision(self) -> Precision:
        """In which precision the networks run."""
        return self._graphs.precision

    def close(self) -> None:
        """Release the sessions and their memory; later calls raise `EdgeVAEError`. A `with` block ends with it."""
        self._graphs.close()

    def __enter__(self: _Model) -> _Model:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def warm_up(self, batch_sizes: Sequence[int] = (1,)) -> None:
        """Run each graph once with each batch size, so that the first real call is not the slow one.

        On the CPU the first call of more than 256 rows a thread makes a second session of its graph.

        Args:
            batch_sizes: At least 1 each.

        Raises:
            InputError: A batch size is no positive integer, or too large for any machine.
        """
        if not isinstance(batch_sizes, Iterable):
            raise InputError(f"batch_sizes must be a list of integers, got {type(batch_sizes).__name__}")
        for size in batch_sizes:
            rows = _inputs.count("batch_sizes", size, _inputs.MAX_COUNT)
            if rows == 0:
                raise InputError("batch_sizes must be at least 1 each, got 0")
            for graph in self._graphs.values():
                graph({part.name: np.zeros((rows, *part.row_shape), part.dtype) for part in graph.spec.inputs})

    def observations(self, x: ArrayLike, y: ArrayLike | None = None) -> tuple[FloatArray, NDArray[np.int64] | None]:
        """Check observations and labels, and return them as the graphs take them; each method begins with this.

        Args:
            x: Observations, as for `encode`.
            y: Labels, for a conditional model.

        Returns:
            float32, shape `(batch, data_dim)`; int64, shape `(batch,)`, or `None` where the model sees no labels.

        Raises:
            InputError: `x` or `y` has another shape or dtype, holds NaN, or values out of range.
        """
        given = self._observations.given(x, y)
        return given["x"], given.get("y")

    def encode(
        self,
        x: ArrayLike,
        *,
        y: ArrayLike | None = None,
        seed: int | Noise | None = None,
        eps: Sequence[ArrayLike] | None = None,
    ) -> Posterior:
        """Return q(z|x), the approximate posterior of each row of `x`.

        Args:
            x: Observations, shape `(batch, data_dim)` or `(batch, *data_shape)`, for images of one channel also
                `(batch, height, width)` or `(batch, height, width, 1)`; or a Pillow image, or a list of them, of the
                model's size and colours. Floats in [0, 1], any that are finite where the likelihood takes any range;
                booleans as 0 and 1; uint8 in [0, 255], which is divided by 255. Other integers are refused where
                numbers must lie in [0, 1], since they may be pixels or not. If `manifest.preprocessing` has a scale:
                numbers of any kind in that range, which become [0, 1].
            y: Labels, for a conditional model.
            seed: For a hierarchy: noise stream of the draws of each level, on which the level above depends. Without
                `seed` and `eps` it depends on the mean.
            eps: For a hierarchy: the noise itself, shape `(batch, size)` for each level but the highest, z's first.

        Returns:
            `z_loc` and `z_scale`, float32, shape `(batch, z_dim)` each; `z_scale` is a standard deviation, positive.
            For a hierarchy also the `upper` levels, for a mixture `component_probs`.

        Raises:
            InputError: An argument has another shape or dtype, holds NaN, or values out of range.
        """
        given = self._observations.given(x, y)
        given.update(draw_lower_noise(self._spec, len(given["x"]), seed, eps))
        outputs = self._graphs["encoder"](given)
        first, *upper = [
            Level(Latents.of(outputs[loc], space), outputs[scale]) for loc, scale, space in self._level_outputs
        ]
        probs = outputs.get("component_probs")
        return Posterior(first.z_loc, first.z_scale, self.latent_space_id, tuple(upper), probs)

    def decode(self, z: ArrayLike, *, y: ArrayLike | None = None, out: FloatArray | None = None) -> FloatArray:
        """Return `loc_img`, the mean of p(x|z): for a Bernoulli, the probability of each pixel.

        Args:
            z: Latents, shape `(batch, z_dim)`; finite numbers.
            y: Labels, for a conditional model.
            out: Where to write the result, and what is returned then: float32, C-contiguous, `(batch, data_dim)`; it
                may lie over the input.

        Returns:
            float32, shape `(batch, data_dim)`; `.reshape(-1, *model.data_shape)` makes images. In [0, 1], or in the
            units of the data where the likelihood takes any range; `manifest.preprocessing.raw` undoes a scale.

        Raises:
            InputError: `z` has another shape or dtype, is not finite, or comes from another model's `Posterior`.
        """
        if type(z) is not np.ndarray:  # a plain array does not know its latent space
            check_latent_space(z, self._latent_space_id)
        latents = _inputs.latents(z, self._z_dim)
        given: dict[str, NDArray[Any]] = {"z": latents}
        if y is not None or self._spec.num_classes:
            given |= _inputs.labels(y, len(latents), self._spec)
        if out is None:
            return self._graphs["decoder"](given)["loc_img"]
        return self._write_loc_img("decoder", given, out)

    def reconstruct(
        self,
        x: ArrayLike,
        *,
        y: ArrayLike | None = None,
        seed: int | Noise | None = None,
        eps: ArrayLike | None = None,
        out: FloatArray | None = None,
    ) -> FloatArray:
        """Encode `x`, sample z, and decode it.

        Args:
            x: Observations, as for `encode`.
            y: Labels, for a conditional model.
            seed: Noise stream for z, the same as PyTorch's CPU generator: the result is that of
                `pyro.set_rng_seed(seed); vae.reconstruct_img(x)`. 0 to 2**64 - 1.
            eps: The noise itself, shape `(batch, z_dim)`. Without `seed` and `eps` there is none: z is `z_loc`.
            out: Where to write the result, and what is returned then: float32, C-contiguous, `(batch, data_dim)`; it
                may lie over the input.

        Returns:
            `loc_img`, float32 in the units of the data, shape `(batch, data_dim)`.

        Raises:
            InputError: An argument has another shape or dtype, or values out of range; or both `seed` and `eps`.
        """
        given = self._observations.given(x, y)
        shape = (len(given["x"]), self._z_dim)
        noise = draw_noise(shape, seed, eps)
        given["eps"] = np.zeros(shape, np.float32) if noise is None else noise
        if out is None:
            return self._graphs["reconstruct"](given)["loc_img"]
        return self._write_loc_img("reconstruct", given, out)

    def _write_loc_img(self, name: GraphName, given: dict[str, NDArray[Any]], out: FloatArray) -> FloatArray:
        """Run a graph that writes its `loc_img` into `out`."""
        batch = len(next(iter(given.values())))
        _inputs.check_buffer(out, (batch, self._spec.data_dim))
        self._graphs[name](_inputs.copy_if_aliased(given, out), {"loc_img": out})
        return out

    def generate(
        self,
        n: int,
        seed: int | Noise | None = None,
        *,
        y: ArrayLike | None = None,
        component: ArrayLike | None = None,
    ) -> FloatArray:
        """Draw z from the prior and decode it.

        Args:
            n: How many, 0 or more.
            seed: Noise stream for z, the same as PyTorch's CPU generator: z is what Pyro's model draws from the same
                seed, the levels of a hierarchy from the highest down. 0 to 2**64 - 1. Required.
            y: Labels, for a conditional model.
            component: For a mixture: one component for all rows, or one for each. By default they are drawn from p(c)
                first, by inverting its cumulative sum at `torch.rand(n)`. Pyro draws them in another way, so its
                samples of the same seed differ.

        Returns:
            `loc_img`, float32 in the units of the data, shape `(n, data_dim)`.

        Raises:
            InputError: An argument is out of range, or is none of this model's.
        """
        n = _inputs.count("n", n, _inputs.MAX_COUNT)
        prior = None if self._spec.latent == "normal" else self._graphs["prior"]
        z = draw_prior(self._spec, prior, n, stream_of(seed), component)
        return self._graphs["decoder"]({"z": z, **_inputs.labels(y, n, self._spec)})["loc_img"]

    def verify(self) -> Report:
        """Compare this model, as it runs here, with what Pyro computed at export.

        Every output is compared at batch sizes 1, 2, 7 and 256, on samples of the data, on its outliers, and on the
        lowest and the highest value of each column. In fp16 and int8 the mean ELBO of the samples decides: it may be
        lower than Pyro's by no more than the manifest allows.

        Returns:
            The comparison; `report.passed` is the verdict, `print(report)` shows a table.

        Raises:
            BundleError: `reference.npz` is missing, changed, or damaged.
        """
        if self.precision == "fp32":
            return verify_graphs(self._bundle, "onnx", self._graphs)
        return verify_reduced(self._bundle, self.precision, self._graphs)

    def posterior_predictive(
        self, x: ArrayLike, num_samples: int, seed: int | Noise | None = None, *, y: ArrayLike | None = None
    ) -> FloatArray:
        """Draw new observations of p(x'|x) = E_q(z|x)[p(x'|z)], with the noise of the likelihood.

        The distribution is that of Pyro's `Predictive(poutine.uncondition(vae.model), guide=vae.guide,
        num_samples=...)`; the same seed gives other draws.

        Args:
            x: Observations, as for `encode`.
            num_samples: Draws for each row, 0 or more.
            seed: Noise stream; each draw takes noise for z and then for x'. 0 to 2**64 - 1. Required.
            y: Labels, for a conditional model.

        Returns:
            float32 in the units of the data, shape `(num_samples, batch, data_dim)`.

        Raises:
            InputError: An argument has another shape or dtype, or values out of range; or this bundle draws no
                observations.
        """
        if not self._spec.has_draws:
            raise InputError(
                f"this bundle draws no observations: a draw of {self._spec.likelihood} takes no fixed amount of noise; "
                "decode and reconstruct give the mean"
            )
        given, stream = self._observations.given(x, y), stream_of(seed)
        draws = np.empty((_inputs.count("num_samples", num_samples, MAX_DRAWS), *given["x"].shape), np.float32)
        for row, draw in zip(draws, posterior_draws(self._graphs, self._spec, given, stream), strict=False):
            row[:] = draw
        return draws

    def elbo(
        self,
        x: ArrayLike,
        seed: int | Noise | None = None,
        num_particles: int = 1,
        *,
        y: ArrayLike | None = None,
        eps: Eps | None = None,
    ) -> Nats:
        """Estimate the evidence lower bound of each row, E_q[log p(x|z) + log p(z) - log q(z|x)].

        Args:
            x: Observations, as for `encode`.
            seed: Noise stream of the particles, drawn one after the other as Pyro's `Trace_ELBO(num_particles)` does.
            num_particles: Draws of z for each row, at least 1.
            y: Labels, for a conditional model; the bound is on log p(x|y) then.
            eps: The noise itself, shape `(num_particles, batch, z_dim)`; for a hierarchy a list of such arrays, one for
                each level, z's first. Give one of `seed` and `eps`.

        Returns:
            The mean over the particles, in nats, higher is better; shape `(batch,)`.

        Raises:
            InputError: An argument has another shape or dtype, or values out of range.
        """
        weights = (terms.log_weight for terms in self._particles(x, y, num_particles, seed, eps))
        total: Nats = functools.reduce(np.add, weights)
        return total / int(num_particles)

    def log_likelihood(
        self,
        x: ArrayLike,
        seed: int | Noise | None = None,
        num_particles: int = 1000,
        *,
        y: ArrayLike | None = None,
        eps: Eps | None = None,
    ) -> Nats:
        """Estimate a lower bound of log p(x) by importance weighting (Burda, Grosse & Salakhutdinov, 2016).

        Args:
            x: Observations, as for `encode`.
            seed: Noise stream of the particles, drawn one after the other.
            num_particles: Draws of z for each row, at least 1; with more of them the bound rises to log p(x). Memory
                does not grow with their number.
            y: Labels, for a conditional model; the bound is on log p(x|y) then.
            eps: The noise itself, as for `elbo`. Give one of `seed` and `eps`.

        Returns:
            log mean exp of the particles' log_px_z + log_pz - log_qz_x, in nats, shape `(batch,)`.

        Raises:
            InputError: An argument has another shape or dtype, or values out of range.
        """
        weights = (terms.log_weight for terms in self._particles(x, y, num_particles, seed, eps))
        total: Nats = functools.reduce(np.logaddexp, weights)
        return total - math.log(num_particles)

    def score(
        self,
        x: ArrayLike,
        seed: int | Noise | None = None,
        num_particles: int = SCORE_PARTICLES,
        *,
        y: ArrayLike | None = None,
        eps: Eps | None = None,
    ) -> Score:
        """Return how unusual each row is, and why: the ELBO with its two parts.

        The ELBO does not find every anomaly: simple images of another kind can score higher than the training data
        (Nalisnick et al., "Do Deep Generative Models Know What They Don't Know?", 2019). Test it on anomalies that you
        expect.

        Args:
            x: Observations, as for `encode`.
            seed: Noise stream of the particles; 0 where neither `seed` nor `eps` is given.
            num_particles: Draws of z for each row, at least 1.
            y: Labels, for a conditional model.
            eps: The noise itself, as for `elbo`.

        Raises:
            InputError: An argument has another shape or dtype, or values out of range.
        """
        if seed is None and eps is None:
            seed = SCORE_SEED
        log_px_z, kl = functools.reduce(Terms.__add__, self._particles(x, y, num_particles, seed, eps))
        reconstruction, kl = log_px_z / int(num_particles), kl / int(num_particles)
        return Score(reconstruction - kl, reconstruction, kl)

    def threshold(self, rate: float = 0.01) -> float:
        """Return the ELBO, in nats, that a fraction `rate` of the test images lies below.

        Args:
            rate: Expected fraction of false alarms, 0.001 to 0.999.

        Raises:
            InputError: `rate` is out of range, or the bundle holds no quantiles of the test images' ELBO.
        """
        return threshold_of(self.manifest, rate)

    def is_anomaly(
        self, x: ArrayLike, seed: int | Noise = SCORE_SEED, *, y: ArrayLike | None = None, rate: float = 0.01
    ) -> NDArray[np.bool_]:
        """Return which rows are anomalous: those whose ELBO lies below `threshold(rate)`. Shape `(batch,)`.

        Rows whose ELBO is NaN or infinite, because they are too far out for float32, are anomalous too.

        Args:
            x: Observations, as for `encode`, treated as the training data was: `manifest.dataset.binarize` says how.
            seed: Noise stream of the particles.
            y: Labels, for a conditional model.
            rate: Expected fraction of false alarms, 0.001 to 0.999.

        Raises:
            InputError: An argument does not fit, or the bundle holds no quantiles of the test images' ELBO.
        """
        limit = self.threshold(rate)
        return self.score(x, seed, y=y).below(limit)

    def _particles(
        self, x: ArrayLike, y: ArrayLike | None, num_particles: int, seed: int | Noise | None, eps: Eps | None
    ) -> Iterator[Terms]:
        given = self._observations.given(x, y)
        noise = particle_noise(self._spec, len(given["x"]), num_particles, seed, eps)
        return particles(self._graphs, self._spec, given, noise)

    def interpolate(self, x_a: ArrayLike, x_b: ArrayLike, steps: int, *, y: ArrayLike | None = None) -> FloatArray:
        """Decode the straight lines between the posterior means of pairs of observations.

        Args:
            x_a: Where the lines start, as for `encode`.
            x_b: Where they end; the same number of rows.
            steps: Points on a line, both ends included; 2 to 2**20.
            y: Labels, for a conditional model; the same along a line.

        Returns:
            `loc_img`, float32 in the units of the data, shape `(batch, steps, data_dim)`.

        Raises:
            InputError: An argument has another shape or dtype, or values out of range.
        """
        steps = _inputs.count("steps", steps, _MAX_STEPS)
        if steps < 2:
            raise InputError(f"steps must be at least 2, got {steps}")
        start, end = (np.asarray(self.encode(x, y=y).z_loc) for x in (x_a, x_b))
        if len(start) != len(end):
            raise InputError(f"x_a and x_b must have the same number of rows, got {len(start)} and {len(end)}")
        weights = np.linspace(0, 1, steps, dtype=np.float32)[None, :, None]
        return self._decode_rows((1 - weights) * start[:, None] + weights * end[:, None], y)

    def traverse(self, x: ArrayLike, dim: int, span: ArrayLike, *, y: ArrayLike | None = None) -> FloatArray:
        """Decode each observation's posterior mean with one dimension of z set to given values.

        Args:
            x: Observations, as for `encode`.
            dim: Which dimension, 0 to `z_dim - 1`; `active_units` says which matter.
            span: The values, shape `(steps,)`; for a standard normal latent -3 to 3 covers it.
            y: Labels, for a conditional model.

        Returns:
            `loc_img`, float32 in the units of the data, shape `(batch, steps, data_dim)`.

        Raises:
            InputError: An argument has another shape or dtype, or values out of range.
        """
        dim = _inputs.count("dim", dim)
        if dim >= self.z_dim:
            raise InputError(f"dim must be from 0 to {self.z_dim - 1}, got {dim}")
        values = _inputs.vector("span", span)
        z = np.repeat(np.asarray(self.encode(x, y=y).z_loc)[:, None], len(values), axis=1)
        z[:, :, dim] = values
        return self._decode_rows(z, y)

    def active_units(self, x: ArrayLike, *, y: ArrayLike | None = None) -> NDArray[np.bool_]:
        """Return which dimensions of z the model uses: those whose posterior mean varies over the observations.

        Args:
            x: Observations, as for `encode`; a few hundred or more, of the data that the model was trained on.
            y: Labels, for a conditional model.

        Returns:
            Whether Var_x(E_q(z|x)[z]) > 0.01 (Burda, Grosse & Salakhutdinov, 2016), shape `(z_dim,)`.

        Raises:
            InputError: An argument does not fit, or `x` has fewer than 2 rows.
        """
        z_loc = np.asarray(self.encode(x, y=y).z_loc)
        if len(z_loc) < 2:
            raise InputError(f"x must have at least 2 rows, whose means can vary, got {len(z_loc)}")
        return z_loc.astype(np.float64).var(axis=0) > _ACTIVE

    def _decode_rows(self, z: FloatArray, y: ArrayLike | None) -> FloatArray:
        """Decode z of shape `(batch, steps, z_dim)`, a row's label for all of its steps."""
        batch, steps, _ = z.shape
        labels = _inputs.labels(y, batch, self._spec).get("y")
        repeated = None if labels is None else np.repeat(labels, steps)
        return self.decode(z.reshape(-1, self.z_dim), y=repeated).reshape(batch, steps, self._spec.data_dim)

    def reconstruct_batches(
        self,
        x: NDArray[Any] | Iterable[ArrayLike],
        batch_size: int = BLOCK_ROWS,
        *,
        y: NDArray[Any] | Iterable[ArrayLike] | int | None = None,
        seed: int | Noise | None = None,
    ) -> Iterator[FloatArray]:
        """Reconstruct a stream of observations, batch by batch.

        The noise of a row depends only on the seed and the row's place in the stream, not on the sizes of the batches.

        Args:
            x: An array, also a memory-mapped one, of shapes as for `encode`; or an iterable of such arrays, each with
                any number of rows.
            batch_size: Rows in a result, at least 1; the last one may have fewer.
            y: Labels, for a conditional model: an array or an iterable as `x` is, or one for all rows.
            seed: Noise stream for z; without it there is none, and z is `z_loc`.

        Yields:
            `loc_img`, float32 in the units of the data, shape `(rows, data_dim)`.

        Raises:
            InputError: An argument has another shape or dtype, or values out of range; raised when
                its batch is reached.
        """
        batch_size = _inputs.count("batch_size", batch_size)
        if batch_size == 0:
            raise InputError("batch_size must be at least 1, got 0")
        noise = None if seed is None else RowNoise(seed, self.z_dim)
        if isinstance(x, np.ndarray) and x.ndim == 1:
            self._observations.scaled(x)  # one row without a batch axis: refused here, not value by value
        observations = row_batches("x", x, batch_size, self._observations.scaled)
        if y is None or isinstance(y, (int, np.integer)):
            pairs: Iterable[tuple[Rows, ArrayLike | None]] = ((rows, y) for rows in observations)
        else:
            pairs = paired(observations, row_batches("y", y, batch_size, self._checked_labels))
        return self._reconstructed(pairs, noise)

    def _reconstructed(
        self, pairs: Iterable[tuple[Rows, ArrayLike | None]], noise: RowNoise | None
    ) -> Iterator[FloatArray]:
        for x, y in pairs:
            eps = np.zeros((len(x), self.z_dim), np.float32) if noise is None else noise.next_rows(len(x))
            given = {"x": x, **_inputs.labels(y, len(x), self._spec), "eps": eps}
            yield self._graphs["reconstruct"](given)["loc_img"]

    def _checked_labels(self, y: Rows) -> NDArray[np.int64]:
        return _inputs.labels(y, len(y), self._spec)["y"]
