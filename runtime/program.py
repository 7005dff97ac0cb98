"""A Pyro program with sites of any number, loaded: `load_program`, and the `Program` that applications use."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import inputs as _inputs
from .bundle import Bundle
from .errors import InputError
from .manifest import GraphName, Manifest, Precision
from .model import open_graphs, threshold_of
from .noise import Noise, stream_of
from .program_spec import PRIOR, ArgumentSpec, DrawSpec, RunName, SiteSpec
from .providers import Execution, ProviderOptions
from .scores import MAX_DRAWS, SCORE_PARTICLES, SCORE_SEED, Nats, Score, Terms
from .session import Graphs
from .verify import Report, verify_graphs, verify_reduced

FloatArray = NDArray[np.float32]
Arrays = dict[str, NDArray[Any]]

_ROWS_AT_ONCE = 1024
"""Rows of several draws in one call of a graph: few calls, bounded memory."""


def load_program(
    path: str | os.PathLike[str],
    provider: str = "auto",
    threads: int | None = None,
    *,
    providers: Sequence[ProviderOptions] | None = None,
    session_options: Any = None,
    precision: Precision = "fp32",
    public_key: str | os.PathLike[str] | bytes | None = None,
) -> Program:
    """Load a bundle of a Pyro program that is used by its sites.

    `edgevae.load` loads a model with one latent and one observed site. The two have names of their own because their
    methods take and give other things, which a type checker can know from the name alone.

    Args:
        path: The bundle's folder.
        provider: As for `edgevae.load`.
        threads: Likewise.
        providers: Likewise.
        session_options: Likewise.
        precision: Likewise.
        public_key: Likewise.

    Raises:
        BundleError: The bundle is missing, damaged, or holds a model with one latent and one observed site.
        InputError: As for `edgevae.load`, as are the other errors.
    """
    bundle = Bundle(path, public_key)
    execution = Execution.of(provider, threads, providers, session_options)
    return Program(open_graphs(bundle, execution, precision, by_site=True))


class Parameters(Mapping[str, FloatArray]):
    """The parameters of a site's distribution: by name, and as attributes, like `q["z"].loc`.

    Float32, shape `(batch, *shape)` each.
    """

    def __init__(self, arrays: Mapping[str, FloatArray]) -> None:
        self._arrays = dict(arrays)

    def __getitem__(self, name: str) -> FloatArray:
        return self._arrays[name]

    def __getattr__(self, name: str) -> FloatArray:
        try:
            return self.__dict__["_arrays"][name]
        except KeyError:
            known = ", ".join(self.__dict__.get("_arrays", {}))
            raise AttributeError(f"the distribution has no parameter {name}, it has {known}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        return ", ".join(f"{name} {array.shape}" for name, array in self.items())


class Guide(Mapping[str, Parameters]):
    """The approximate posterior: the parameters of each site of the guide, by its name; `value` of a computed one."""

    def __init__(self, sites: Mapping[str, Parameters], draw: Callable[[int | Noise], Arrays]) -> None:
        self._sites, self._draw = dict(sites), draw

    def __getitem__(self, name: str) -> Parameters:
        if name not in self._sites:
            raise InputError(f"the guide has no site {name!r}, it has {', '.join(self._sites)}")
        return self._sites[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    def sample(self, seed: int | Noise) -> Arrays:
        """Draw all latents, shape `(batch, *shape)` each, by the site's name; a seed gives Pyro's own sample.

        Where a site hangs on another one's draw, it is that of the same seed, whatever `encode` was called with.

        Raises:
            InputError: `seed` is missing or out of range.
        """
        return self._draw(seed)

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {parameters!r}" for name, parameters in self.items())


class Program:
    """A Pyro program. Made by `load_program`; its methods keep no state, and the same arguments give the same numbers.

    `arguments` and `sites` say what it consists of. Each method takes the arguments of model and guide, in their order
    or by name: float32 or integers, shape `(batch, *shape)`; an integer may be one for all rows. `seed` is as for
    `Model`.

    Args:
        graphs: The graphs of the program's bundle.
    """

    def __init__(self, graphs: Graphs) -> None:
        self._graphs = graphs
        spec = graphs.bundle.manifest.model.program
        if spec is None:
            raise AssertionError
        self._spec = spec
        self._densities: RunName = "enumerated" if "enumerated" in spec.draws else "posterior"

    @property
    def manifest(self) -> Manifest:
        """The content of the bundle's `manifest.json`."""
        return self._graphs.bundle.manifest

    @property
    def arguments(self) -> tuple[ArgumentSpec, ...]:
        """The arguments of model and guide, in order."""
        return self._spec.arguments

    @property
    def sites(self) -> tuple[SiteSpec, ...]:
        """The sample statements, the guide's first."""
        return self._spec.sites

    @property
    def same_seed_as_pyro(self) -> bool:
        """Whether a seed gives Pyro's own sample; `manifest.model.program.why_other_samples` says why not."""
        return not self._spec.why_other_samples

    def reads(self, *graphs: GraphName) -> list[str]:
        """Return the names of the arguments that some graphs read, in the program's order."""
        read = {name for graph in graphs if graph in self._graphs for name in self._graphs[graph].inputs}
        return [argument.name for argument in self.arguments if argument.name in read]

    @property
    def decoded(self) -> list[ArgumentSpec]:
        """The latents whose values `decode` takes, as float32, in order."""
        inputs = self._graphs["decoder"].inputs
        return [
            ArgumentSpec(name=site.name, dtype="float32", shape=site.shape)
            for site in self.sites
            if site.role == "latent" and site.name in inputs
        ]

    @property
    def precision(self) -> Precision:
        """In which precision the networks run."""
        return self._graphs.precision

    @property
    def provider(self) -> str:
        """Where the program runs: `cpu`, `cuda`, or another of ONNX Runtime's providers."""
        return self._graphs.provider

    def close(self) -> None:
        """Release the sessions and their memory; later calls raise `EdgeVAEError`. A `with` block ends with it."""
        self._graphs.close()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        sites = ", ".join(f"{site.name} ({site.role})" for site in self.sites)
        return f"<Program {self.manifest.name!r} {sites} on {self.provider}>"

    def encode(self, *args: ArrayLike, seed: int | Noise = 0, **kwargs: ArrayLike) -> Guide:
        """Return the parameters of each site of the guide.

        Args:
            *args: The program's arguments.
            seed: Noise stream for the draws on which other sites of the guide hang.
            **kwargs: Arguments by name.

        Raises:
            InputError: An argument is missing, or has another shape or dtype.
        """
        given = self._bound(args, kwargs)
        return self._encoded(given, self._noise("posterior", _rows(given), seed))

    def _encoded(self, given: Arrays, noise: Arrays) -> Guide:
        outputs = self._graphs["encoder"]({**given, **noise})
        sites: dict[str, Parameters] = {}
        for site in self.sites:
            if site.role == "latent":
                found = {name: outputs[key] for name in site.parameters if (key := f"{site.name}.{name}") in outputs}
                sites[site.name] = Parameters(found)
            elif site.name in outputs:
                sites[site.name] = Parameters({"value": outputs[site.name]})

        def draw(seed: int | Noise) -> Arrays:
            return self._drawn(given, self._noise("posterior", _rows(given), seed))

        return Guide(sites, draw)

    def _drawn(self, given: Arrays, noise: Arrays) -> Arrays:
        arrays: Arrays = {**given, **noise}
        arrays |= self._graphs["encoder"](arrays)
        return self._graphs["sample"](arrays)

    def decode(
        self, latents: Mapping[str, ArrayLike], *args: ArrayLike, seed: int | Noise = 0, **kwargs: ArrayLike
    ) -> dict[str, Parameters]:
        """Return the parameters of each observed site, its `mean` among them where it has one, and computed sites.

        Args:
            latents: The value of each latent, shape `(batch, *shape)`, as `encode(...).sample(seed)` gives them.
            *args: Arguments that the likelihood reads, in the program's order; none where it reads none.
            seed: Noise stream of sites that the model alone draws.
            **kwargs: Likewise, by name.

        Raises:
            InputError: A latent or an argument is missing, or has another shape.
        """
        graph = self._graphs["decoder"]
        arrays = self._latents(latents)
        needed = self.reads("decoder")
        if args or kwargs or needed:
            arrays |= self._bound(args, kwargs, needed, _rows(arrays) if arrays else None)
        return self._observed(graph({**arrays, **self._noise("posterior", _rows(arrays), seed)}))

    def _observed(self, outputs: Mapping[str, FloatArray]) -> dict[str, Parameters]:
        found: dict[str, dict[str, FloatArray]] = {}
        for site in self.sites:
            if site.name in outputs:
                found[site.name] = {"value": outputs[site.name]}
            elif site.role == "observed":
                names = [*site.parameters, "mean"]
                found[site.name] = {name: outputs[key] for name in names if (key := f"{site.name}.{name}") in outputs}
        return {name: Parameters(arrays) for name, arrays in found.items() if arrays}

    def reconstruct(self, *args: ArrayLike, seed: int | Noise, **kwargs: ArrayLike) -> dict[str, FloatArray]:
        """Run the guide and then the model: return the mean of each observed site, shape `(batch, *shape)`.

        Args:
            *args: The program's arguments.
            seed: Noise stream of the latents.
            **kwargs: Arguments by name.

        Raises:
            InputError: An argument does not fit.
        """
        given = self._bound(args, kwargs)
        outputs = self._graphs["reconstruct"]({**given, **self._noise("posterior", _rows(given), seed)})
        return {name.removesuffix(".mean"): array for name, array in outputs.items()}

    def generate(self, *args: ArrayLike, n: int, seed: int | Noise, **kwargs: ArrayLike) -> dict[str, Parameters]:
        """Run the model alone: draw the latents from the prior, and decode them.

        Args:
            *args: Arguments that the prior and the likelihood read, in the program's order.
            n: How many rows.
            seed: Noise stream of the latents.
            **kwargs: Arguments by name; one number stands for all rows.

        Raises:
            InputError: An argument is missing or does not fit.
        """
        n = _inputs.count("n", n, _inputs.MAX_COUNT)
        if not {"prior", "decoder"} <= set(self._graphs):
            raise InputError(
                "this program has no draws of its prior: its model runs only with all discrete values at once"
            )
        prior, decoder = self._graphs["prior"], self._graphs["decoder"]
        arrays = (
            self._bound(args, kwargs, self.reads("prior", "decoder"), n)
            | self._noise("posterior", n, seed)
            | self._noise("prior", n, seed)
        )
        arrays |= {name.removesuffix(PRIOR): value for name, value in prior(arrays).items()}
        return self._observed(decoder(arrays))

    def posterior_predictive(
        self, *args: ArrayLike, num_samples: int, seed: int | Noise, **kwargs: ArrayLike
    ) -> dict[str, FloatArray]:
        """Draw new observations with the noise of the likelihood, as Pyro's `Predictive` with the guide does.

        Args:
            *args: The program's arguments.
            num_samples: Draws for each row.
            seed: Noise stream; each draw takes noise for the latents and then for the observations.
            **kwargs: Arguments by name.

        Returns:
            Of each observed site that can be drawn, float32, shape `(num_samples, batch, *shape)`.

        Raises:
            InputError: An argument does not fit, or no observed site can be drawn from a fixed amount of noise.
        """
        given, stream = self._bound(args, kwargs), stream_of(seed)
        if "observation" not in self._graphs:
            raise InputError("no observed site can be drawn from a fixed amount of noise; decode gives the means")
        batch, count = _rows(given), _inputs.count("num_samples", num_samples, MAX_DRAWS)
        graphs = [self._graphs[name] for name in ("encoder", "sample", "decoder", "observation")]
        shared = dict(given)
        if set(graphs[0].inputs) <= shared.keys():  # the encoder takes no noise: one run serves all draws
            shared |= graphs.pop(0)(shared)
        shapes = {spec.name: spec.row_shape for spec in graphs[-1].spec.outputs}
        drawn = {name: np.empty((count, batch, *shape), np.float32) for name, shape in shapes.items()}
        at_once = max(1, _ROWS_AT_ONCE // max(1, batch))
        for start in range(0, count, at_once):
            part = slice(start, min(start + at_once, count))
            noise = [self._noise("posterior", batch, stream) for _ in range(part.stop - part.start)]
            arrays: Arrays = {name: np.concatenate([array] * len(noise)) for name, array in shared.items()}
            arrays |= {name: np.concatenate([each[name] for each in noise]) for name in noise[0]}
            for graph in graphs:
                arrays |= graph(arrays)
            for name, into in drawn.items():
                into[part] = arrays[name].reshape(len(noise), batch, *shapes[name])
        return {name.removesuffix(".draw"): array for name, array in drawn.items()}

    def elbo(self, *args: ArrayLike, seed: int | Noise, num_particles: int = 1, **kwargs: ArrayLike) -> Nats:
        """Return the ELBO of each row in nats, float64, shape `(batch,)`: `-Trace_ELBO().loss` of the program, by row.

        Where the program asks to sum over discrete sites, it is that of `TraceEnum_ELBO`.

        Args:
            *args: The program's arguments.
            seed: Noise stream of the draws.
            num_particles: Over how many draws the mean is taken, at least 1.
            **kwargs: Arguments by name.

        Raises:
            InputError: An argument does not fit.
        """
        terms = self._terms(args, kwargs, num_particles, seed)
        return functools.reduce(np.add, (each.log_weight for each in terms)) / int(num_particles)

    def log_likelihood(self, *args: ArrayLike, seed: int | Noise, num_particles: int, **kwargs: ArrayLike) -> Nats:
        """Return the importance-weighted bound on log p(x) of each row in nats (Burda et al., 2016), shape `(batch,)`.

        Args:
            *args: The program's arguments.
            seed: Noise stream of the draws.
            num_particles: How many draws, at least 1.
            **kwargs: Arguments by name.

        Raises:
            InputError: An argument does not fit.
        """
        terms = self._terms(args, kwargs, num_particles, seed)
        total: Nats = functools.reduce(np.logaddexp, (each.log_weight for each in terms))
        return total - math.log(num_particles)

    def score(
        self,
        *args: ArrayLike,
        seed: int | Noise = SCORE_SEED,
        num_particles: int = SCORE_PARTICLES,
        **kwargs: ArrayLike,
    ) -> Score:
        """Return how unusual each row is, and why: the ELBO with its two parts, see `Model.score`.

        Raises:
            InputError: An argument does not fit.
        """
        return self._score(args, kwargs, num_particles, seed)

    def _score(
        self, args: tuple[ArrayLike, ...], kwargs: Mapping[str, ArrayLike], num_particles: int, seed: int | Noise
    ) -> Score:
        total = functools.reduce(Terms.__add__, self._terms(args, kwargs, num_particles, seed))
        reconstruction, kl = total.log_px_z / int(num_particles), total.kl / int(num_particles)
        return Score(reconstruction - kl, reconstruction, kl)

    def threshold(self, rate: float = 0.01) -> float:
        """Return the ELBO, in nats, that a fraction `rate` of the example's rows lies below; 0.001 to 0.999.

        Raises:
            InputError: `rate` is out of range.
        """
        return threshold_of(self.manifest, rate)

    def is_anomaly(
        self, *args: ArrayLike, seed: int | Noise = SCORE_SEED, rate: float = 0.01, **kwargs: ArrayLike
    ) -> NDArray[np.bool_]:
        """Return which rows have an ELBO below `threshold(rate)`, or none that float32 can hold; shape `(batch,)`.

        Raises:
            InputError: An argument does not fit.
        """
        found = self._score(args, kwargs, SCORE_PARTICLES, seed)
        return found.below(self.threshold(rate))

    def verify(self) -> Report:
        """Compare this program, as it runs here, with what Pyro computed at export, see `Model.verify`.

        Raises:
            BundleError: The reference is missing, changed or damaged.
        """
        if self.precision == "fp32":
            return verify_graphs(self._graphs.bundle, "onnx", self._graphs)
        return verify_reduced(self._graphs.bundle, self.precision, self._graphs)

    # Arguments and noise

    def _bound(
        self,
        args: tuple[ArrayLike, ...],
        kwargs: Mapping[str, ArrayLike],
        needed: list[str] | None = None,
        batch: int | None = None,
    ) -> Arrays:
        """Return arguments by name; `needed` are those that a call takes, by default all."""
        specs = [spec for spec in self.arguments if needed is None or spec.name in needed]
        takes = ", ".join(spec.name for spec in specs) or "no arguments"
        if len(args) > len(specs):
            raise InputError(f"{len(args)} arguments were given; expected {takes}")
        given = dict(zip([spec.name for spec in specs], args, strict=False))
        if unknown := [name for name in kwargs if name in given or name not in {spec.name for spec in specs}]:
            raise InputError(f"{', '.join(unknown)} was given twice, or is no argument; expected {takes}")
        given |= kwargs
        if missing := [spec.name for spec in specs if spec.name not in given]:
            raise InputError(f"{', '.join(missing)} is missing; expected {takes}")
        arrays: Arrays = {}
        for spec in specs:
            arrays[spec.name] = checked_argument(spec, given[spec.name], batch)
            batch = len(arrays[spec.name]) if batch is None else batch
        return arrays

    def _latents(self, latents: Mapping[str, ArrayLike]) -> Arrays:
        needed = self.decoded
        if missing := [spec.name for spec in needed if spec.name not in latents]:
            names = ", ".join(spec.name for spec in needed)
            raise InputError(f"the value of {', '.join(missing)} is missing; expected {names}")
        batch: int | None = None
        arrays: Arrays = {}
        for spec in needed:
            arrays[spec.name] = checked_argument(spec, latents[spec.name], batch)
            batch = len(arrays[spec.name])
        return arrays

    def _noise(self, run: RunName, batch: int, seed: int | Noise) -> Arrays:
        """Draw the noise of a run, in the program's order and shapes; the batch first."""
        stream = stream_of(seed)
        return {draw.name: _drawn(draw, batch, stream) for draw in self._spec.draws.get(run, ())}

    def _noise_of_latents(self, batch: int, stream: Noise) -> Arrays:
        """Draw the noise of a particle; the densities take none for observed sites, which come last in a run."""
        observed = {f"{site.name}.noise" for site in self.sites if site.role == "observed"}
        draws = self._spec.draws.get(self._densities, ())
        latent = (draw for draw in draws if draw.name.partition(".noise")[0] + ".noise" not in observed)
        return {draw.name: _drawn(draw, batch, stream) for draw in latent}

    def _terms(
        self, args: tuple[ArrayLike, ...], kwargs: Mapping[str, ArrayLike], num_particles: int, seed: int | Noise
    ) -> Iterator[Terms]:
        given, stream = self._bound(args, kwargs), stream_of(seed)
        if (count := _inputs.count("num_particles", num_particles, MAX_DRAWS)) == 0:
            raise InputError("num_particles must be at least 1, got 0")
        return (self._particle(given, stream) for _ in range(count))

    def _particle(self, given: Arrays, stream: Noise) -> Terms:
        arrays: Arrays = {**given, **self._noise_of_latents(_rows(given), stream)}
        graph = self._graphs["elbo"]
        for name in ("encoder", "sample", "decoder"):
            if set(graph.inputs) <= arrays.keys():
                break
            arrays |= self._graphs[name](arrays)
        terms = graph(arrays)
        log_px_z, log_pz, log_qz_x = (terms[name].astype(np.float64) for name in ("log_px_z", "log_pz", "log_qz_x"))
        return Terms(log_px_z, log_qz_x - log_pz)


def _rows(arrays: Arrays) -> int:
    return len(next(iter(arrays.values())))


def checked_argument(spec: ArgumentSpec, value: ArrayLike, batch: int | None = None) -> NDArray[Any]:
    """Return an argument as its graph takes it.

    Args:
        spec: The argument.
        value: What was given for it.
        batch: How many rows it must have; `None` for any number.

    Raises:
        InputError: It has another shape or dtype, or is not finite.
    """
    array = _inputs.array_of(spec.name, value)
    whole = spec.dtype == "int64"
    if whole and array.ndim == 0 and batch is not None:
        array = np.broadcast_to(array, (batch, *spec.shape))
    wanted = f"({'batch' if batch is None else batch}{''.join(f', {size}' for size in spec.shape)})"
    if array.ndim == 0 or array.shape[1:] != spec.shape or (batch is not None and len(array) != batch):
        raise InputError(f"{spec.name} must have shape {wanted}, got {array.shape}")
    if whole:
        if array.dtype.kind not in "iub":
            raise InputError(f"{spec.name} must hold integers, got {array.dtype}")
        return np.ascontiguousarray(array, np.int64)
    if array.dtype.kind not in "fiub":
        raise InputError(f"{spec.name} must hold numbers, got {array.dtype}")
    return np.ascontiguousarray(_inputs.finite(spec.name, array))


def _drawn(draw: DrawSpec, batch: int, stream: Noise) -> FloatArray:
    shape = (*draw.shape[: draw.axis], batch * draw.repeats, *draw.shape[draw.axis :])
    normal = draw.kind == "normal"
    values = stream.standard_normal(shape) if normal else stream.uniform(math.prod(shape)).reshape(shape)
    if draw.repeats > 1:
        values = values.reshape(*draw.shape[: draw.axis], batch, draw.repeats, *draw.shape[draw.axis :])
    return np.ascontiguousarray(np.moveaxis(values, draw.axis, 0))
