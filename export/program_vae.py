"""A Pyro program of a user's own as a VAE: the functions of a bundle, derived from its model and guide.

Such a program has one normal latent and one observed site, the data, beside which it may take labels: whatever the
networks are, the prior, the likelihood, and the names. Others go by `program_sites`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from edgevae import GraphName, ModelSpec, TensorSpec, signatures, tensor
from edgevae.train import Dataset, Images
from edgevae.train.elbo import slices
from edgevae.train.program import TERMS, Draw, Function, PyroProgram, RunName, Site, TracedRun, check_amortized
from edgevae.train.programs import Program, uniform_of

from .errors import GraphError, NotAVAEError
from .exportable import ExportableVAE, FloatArray, as_tensor, away_from_steps

_ROWS_AT_ONCE = 1024
_SEED = 0
_BUNDLES = "a VAE has one normal latent and one observed site"


class ProgramVAE(ExportableVAE):
    """A Pyro program as a VAE with the names and shapes of a bundle.

    Args:
        program: The program. Its arguments are the data, and labels where the model takes them, as integers or one-hot.
        data_shape: Shape of one observation for users of the bundle, like `(1, 28, 28)` where the program takes 784
            values; by default what the program takes.
        name: The program's name, for the manifest.

    Attributes:
        program: The program.
        samples: The data of its example, shape `(rows, *data_shape)`.
        labels: Its labels, int64, shape `(rows,)`; `None` where the program takes none.

    Raises:
        GraphError: `data_shape` does not fit the data.
        NotAVAEError: It has other sites or arguments.
        ProgramError: The guide does not depend on the data.
        TraceError: The program cannot be traced for any batch size.
    """

    def __init__(self, program: PyroProgram, *, data_shape: tuple[int, ...] | None = None, name: str = "") -> None:
        self.program = program
        self._latent, self._observed = _sites_of(self.program)
        self._data, self._label = self._arguments()
        rows = self.program.example[self._data]
        shape = data_shape or tuple(rows.shape[1:]) or (1,)
        if math.prod(shape) != math.prod(rows.shape[1:]):
            raise GraphError(f"the program takes observations of shape {tuple(rows.shape[1:])}, got data shape {shape}")
        self.samples = rows.reshape(-1, *shape)
        self.labels, num_classes = self._classes(self.program.example)
        self._functions = self._derive()
        check_amortized(program, self._functions["encoder"])
        super().__init__(
            ModelSpec(
                architecture=name or program.name,
                likelihood=self._observed.distribution,
                latent="program" if "prior" in self._functions else "normal",
                data_shape=shape,
                z_dims=(math.prod(self._latent.row_shape),),
                hidden_dim=0,
                num_classes=num_classes,
                num_components=0,
                unit_interval=self._observed.unit_interval,
                has_draws="observation" in self._functions,
            )
        )

    @property
    def notes(self) -> list[str]:
        """What a user should know, a sentence each."""
        notes = self.program.notes
        if self._label is not None:
            notes.append(f"{self._label} is a label from 0 to {self.spec.num_classes - 1}, as in the example")
        if not self.spec.has_draws:
            notes.append(
                f"a draw of {self._observed.name} takes no fixed amount of noise: the bundle has its mean, and no draws"
            )
        return notes

    def dataset(self, arguments: Mapping[str, Tensor]) -> Dataset[Images]:
        """Return arguments of the program as observations and labels, each of them a training and a test row."""
        rows = arguments[self._data].reshape(-1, *self.spec.data_shape)
        labels, _ = self._classes(arguments)
        return Dataset[Images]("the data", rows, rows, labels, labels)

    def show_as(self, data_shape: tuple[int, ...]) -> None:
        """Give observations another shape for users of the bundle.

        Raises:
            GraphError: It has another number of values.
        """
        if math.prod(data_shape) != self.spec.data_dim:
            raise GraphError(
                f"the program takes observations of shape {self.spec.data_shape}, got data shape {data_shape}"
            )
        self.spec = msgspec.structs.replace(self.spec, data_shape=data_shape)
        self.samples = self.samples.reshape(-1, *data_shape)

    # What the program is

    @functools.cached_property
    def _posterior(self) -> TracedRun:
        return self._traced("posterior")

    @functools.cached_property
    def _prior(self) -> TracedRun:
        return self._traced("prior")

    @functools.cached_property
    def _densities(self) -> TracedRun:
        run = self.program.run_of_densities
        return self._posterior if run == "posterior" else self._traced(run)

    def _traced(self, run: RunName) -> TracedRun:
        with torch.random.fork_rng([]):
            torch.manual_seed(_SEED)
            return TracedRun(self.program, run)

    def _arguments(self) -> tuple[str, str | None]:
        """Return the names of the arguments that are the data and the labels."""
        example = self.program.example
        data = [name for name, rows in example.items() if rows.is_floating_point()]
        if len(data) > 1:  # the data are what the program observes
            observed = self._posterior.outputs[self._observed.name]
            data = [name for name in data if self._posterior.inputs[name] is observed]
        if len(data) != 1:
            raise NotAVAEError(
                f"expected one array of floats, the data, among the arguments {', '.join(example)}; {_BUNDLES}"
            )
        (data_name,) = data
        others = [name for name in example if name != data_name]
        if len(others) > 1:
            raise NotAVAEError(f"expected labels at most beside {data_name}, got {', '.join(others)}; {_BUNDLES}")
        return data_name, next(iter(others), None)

    def _classes(self, arguments: Mapping[str, Tensor]) -> tuple[Tensor | None, int]:
        """Return the labels among arguments, and how many classes there are."""
        if self._label is None:
            return None, 0
        rows = arguments[self._label]
        if rows.ndim == 1 and not rows.is_floating_point():
            return rows.long(), int(rows.max()) + 1
        if rows.ndim == 2 and bool(((rows == 0) | (rows == 1)).all()) and bool((rows.sum(1) == 1).all()):
            return rows.argmax(1), rows.shape[1]
        raise NotAVAEError(
            f"{self._label} must be labels, integers of shape (rows,) or one-hot of shape (rows, classes), got "
            f"{rows.dtype} of shape {tuple(rows.shape)}; {_BUNDLES}"
        )

    def _derive(self) -> dict[GraphName, Function]:
        """Return the program's functions, under its own names."""
        z, obs = self._latent.name, self._observed.name
        mean, draw = f"{obs}.mean", f"{obs}.draw"
        outputs = self._posterior.outputs
        if mean not in outputs:
            raise NotAVAEError(
                f"site {obs!r} has no mean, its distribution is {self._observed.distribution}; observe a distribution "
                f"that has one. {_BUNDLES}"
            )
        heads = [f"{z}.loc", f"{z}.scale"]
        parameters = [f"{obs}.{name}" for name in self._observed.parameters]
        given = [name for name in (z, *heads, mean, *parameters) if name in self._densities.outputs]
        functions: dict[GraphName, Function] = {
            "encoder": self._posterior.function([], heads),
            "elbo": self._densities.function(given, TERMS),
            "reconstruct": self._posterior.function([], [mean]),
        }
        noise = [each for each in self.program.draws["posterior"] if each.site == obs]
        if draw in outputs and len(noise) == 1:
            functions["observation"] = self._posterior.function([mean, *parameters], [draw])
        needed = {name for function in functions.values() for name in function.inputs}
        rest = [name for name in parameters if name in needed and outputs[name] is not outputs[mean]]
        functions["decoder"] = self._posterior.function([z], [mean, *rest])
        prior = self._prior.function([], [z])
        if not self._is_standard_normal(prior):
            functions["prior"] = prior
        return functions

    def _is_standard_normal(self, prior: Function) -> bool:
        z, values = self._latent.name, self._prior.values
        noise = [each.name for each in self.program.draws["prior"] if each.site == z]
        loc, scale = values.get(f"{z}.loc"), values.get(f"{z}.scale")
        if noise != [f"{z}.noise"] or prior.read - {*noise}:
            return False
        return loc is not None and scale is not None and bool((loc == 0).all()) and bool((scale == 1).all())

    # As a bundle

    @functools.cached_property
    def programs(self) -> Mapping[GraphName, Program]:
        """The functions of a bundle, by name."""
        parameters = [
            tensor(self._bundle_name(name), *self._row_shape(name)) for name in self._functions["decoder"].outputs
        ]
        found: dict[GraphName, Program] = {}
        for name, signature in signatures(self.spec, parameters).items():
            function = self._functions[name]
            takes = self._takes(name, function, signature.inputs)
            shapes = [spec.row_shape for spec in signature.outputs]
            found[name] = Program(Adapted(function.module, takes, shapes).eval(), signature)
        return found

    def _bundle_name(self, name: str) -> str:
        """Return what a bundle calls a tensor of the program."""
        z, obs = self._latent.name, self._observed.name
        names = {
            self._data: "x",
            z: "z",
            f"{z}.loc": "z_loc",
            f"{z}.scale": "z_scale",
            f"{z}.noise": "eps",
            f"{obs}.mean": "loc_img",
            f"{obs}.noise": "eps_obs",
        }
        if self._label is not None:
            names[self._label] = "y"
        return names.get(name) or name.removeprefix(f"{obs}.")

    def _row_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a row of a likelihood's parameter in a bundle: flat, where it is that of the data."""
        shape = tuple(self._posterior.outputs[name].meta["val"].shape[1:])
        data_shape = self.program.example[self._data].shape[1:]
        return (self.spec.data_dim,) if shape == data_shape or name.endswith(".mean") else shape

    def _takes(self, graph: GraphName, function: Function, inputs: Sequence[TensorSpec]) -> list[Taken]:
        """Say where each input of a function comes from among the inputs of a graph.

        Raises:
            GraphError: The graph lacks one of them.
        """
        names = [spec.name for spec in inputs]
        draws = {draw.name: draw for run in self.program.draws.values() for draw in run}
        takes = []
        for name, example in zip(function.inputs, function.examples, strict=True):
            source = self._bundle_name(name)
            if source not in names:
                if name in function.read:
                    raise NotAVAEError(
                        f"{graph} needs {name}, which a VAE's {graph} does not take, only {', '.join(names)}; "
                        f"{_BUNDLES}, whose prior and likelihood depend on labels in the decoder alone"
                    )
                takes.append(Taken(0, tuple(example.shape[1:]), "rows"))
                continue
            kind: _Kind = "values"
            if name == self._label and example.ndim == 2:
                kind = "one-hot"
            elif name in draws and source == "eps_obs" and draws[name].kind == "uniform":
                kind = "uniform"
            takes.append(Taken(names.index(source), tuple(example.shape[1:]), kind, example.dtype))
        return takes

    def weights(self) -> Mapping[str, Tensor]:
        """Return the weights and constants of encoder and decoder by name."""
        return {
            f"{graph}.{name}": value
            for graph in ("encoder", "decoder")
            for name, value in self._functions[graph].module.state_dict().items()
        }

    # What Pyro computes

    @torch.no_grad()
    def elbo_of_each(self, x: Images, y: Tensor | None = None, num_particles: int = 1) -> Tensor:
        """Return the ELBO of each row in nats, float64, shape `(batch,)`, from noise of a fixed seed."""
        elbo, run = torch.zeros(len(x), dtype=torch.float64), self.program.run_of_densities
        with torch.random.fork_rng([]):
            torch.manual_seed(_SEED)
            for rows in slices(len(x), _ROWS_AT_ONCE):
                given = self._given(x[rows], None if y is None else y[rows])
                for _ in range(num_particles):
                    found = self.program.compute(run, given, self.program.noise(run, len(x[rows])))
                    elbo[rows] += found["log_px_z"] + found["log_pz"] - found["log_qz_x"]
        return elbo / num_particles

    @torch.no_grad()
    def outputs(self, x: Tensor, y: Tensor | None, eps: list[Tensor], eps_obs: Tensor) -> dict[str, Tensor]:
        """Return inputs and outputs of all functions by name, as runs of the program give them."""
        given, run = self._given(x, y), self.program.run_of_densities
        if self.spec.has_draws:
            decoded = self._run("posterior", given, eps[0], eps_obs)
            eps_obs = self._moved_from_steps(decoded, eps_obs)
        found = self._run("posterior", given, eps[0], eps_obs)
        terms = found if run == "posterior" else self._run(run, given, eps[0], eps_obs)
        tensors = {name: value for name, value in self._named(found).items() if value is not None}
        tensors |= {"x": x, "eps": eps[0], "eps_obs": eps_obs, **{name: terms[name] for name in TERMS}}
        if self.spec.has_draws:
            tensors["obs"] = found[f"{self._observed.name}.draw"].flatten(1).float()
        if self.spec.latent == "program":
            tensors["z_prior"] = self._run("prior", given, eps[0], eps_obs)[self._latent.name].flatten(1)
        return tensors if y is None else {**tensors, "y": y}

    def _named(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what encoder and decoder give, and z, under a bundle's names and in its shapes."""
        z = self._latent.name
        named = {self._bundle_name(name): found[name].flatten(1) for name in (z, f"{z}.loc", f"{z}.scale")}
        for name in self._functions["decoder"].outputs:
            named[self._bundle_name(name)] = found[name].reshape(len(found[name]), *self._row_shape(name))
        return named

    def _run(self, run: RunName, given: Mapping[str, Tensor], eps: Tensor, eps_obs: Tensor) -> Mapping[str, Tensor]:
        noise = {draw.name: self._noise_of(draw, eps, eps_obs) for draw in self.program.draws[run]}
        return self.program.compute(run, given, noise)

    def _noise_of(self, draw: Draw, eps: Tensor, eps_obs: Tensor) -> Tensor:
        """Return the program's noise for that of a bundle."""
        shape = (len(eps), *draw.layout.row_shape)
        if draw.site == self._latent.name:
            return eps.reshape(shape)
        if draw.site == self._observed.name and math.prod(shape) == eps_obs.numel():
            return (uniform_of(eps_obs) if draw.kind == "uniform" else eps_obs).reshape(shape)
        return torch.full(shape, 0.5)  # of an observation that the bundle does not draw

    def _moved_from_steps(self, found: Mapping[str, Tensor], eps_obs: Tensor) -> Tensor:
        observation = self.programs["observation"]
        parameters = self._named(found)

        def draw(eps: Tensor) -> Tensor:
            given = {**parameters, "eps_obs": eps}
            obs: Tensor = observation.module(*(given[spec.name] for spec in observation.signature.inputs))
            return obs

        return away_from_steps(draw, eps_obs)

    def _given(self, x: Tensor, y: Tensor | None) -> dict[str, Tensor]:
        """Return the program's arguments for observations and labels."""
        shape = self.program.example[self._data].shape[1:]
        given = {self._data: x.reshape(len(x), *shape)}
        if self._label is not None and y is not None:
            like = self.program.example[self._label]
            given[self._label] = y.to(like.dtype) if like.ndim == 1 else _one_hot(y, like.shape[1], like.dtype)
        return given

    # The card's pictures

    @property
    def component_probs(self) -> FloatArray:
        """Empty: the latent is no mixture."""
        return np.zeros(0, np.float32)

    def generate(self, n: int, seed: int, *, y: Any = None, component: Any = None) -> FloatArray:  # noqa: ARG002 - there are none
        """Return the means for `n` draws of the prior, those of `Model.generate` from the same seed."""
        eps = torch.randn((n, self.spec.z_dim), generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            z = self.programs["prior"].module(eps) if self.spec.latent == "program" else eps
        return self.decode(z, y=None if y is None else as_tensor(y))


_Kind = Literal["values", "one-hot", "uniform", "rows"]


@dataclasses.dataclass(frozen=True)
class Taken:
    """What a program's function takes.

    Args:
        index: Which of the graph's inputs it is.
        shape: Of a row, as the program has it.
        kind: The values as they are; labels as one-hot; standard normal noise as uniform; or nothing but the number of
            rows.
        dtype: Of the values.
    """

    index: int
    shape: tuple[int, ...]
    kind: _Kind
    dtype: torch.dtype = torch.float32

    def of(self, given: Tensor) -> Tensor:
        """Return it for the graph's input."""
        if self.kind == "one-hot":
            return _one_hot(given, self.shape[0], self.dtype)
        if self.kind == "rows":
            return given.new_zeros((given.shape[0], *self.shape), dtype=self.dtype)
        rows = uniform_of(given) if self.kind == "uniform" else given
        rows = rows if tuple(rows.shape[1:]) == self.shape else rows.reshape(rows.shape[0], *self.shape)
        return rows if rows.dtype == self.dtype else rows.to(self.dtype)


class Adapted(nn.Module):
    """A function of a program that takes and returns what a bundle's graph does.

    Args:
        function: The function, its arguments and results as the program has them.
        takes: Where each of its arguments comes from.
        shapes: Of a row of each result.
    """

    def __init__(self, function: nn.Module, takes: Sequence[Taken], shapes: Sequence[tuple[int, ...]] = ()) -> None:
        super().__init__()
        self.function, self._takes, self._shapes = function, tuple(takes), tuple(shapes)

    def forward(self, *given: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Compute the results; a single one as it is."""
        results = self.function(*(each.of(given[each.index]) for each in self._takes))
        shaped = tuple(
            _floats(result if tuple(result.shape[1:]) == shape else result.reshape(result.shape[0], *shape))
            for result, shape in zip(results, self._shapes, strict=True)
        )
        return shaped if len(shaped) > 1 else shaped[0]


def _floats(values: Tensor) -> Tensor:
    """Return float32: values of discrete sites may be integers."""
    return values if values.is_floating_point() else values.float()


def _one_hot(y: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    return (y[:, None] == torch.arange(classes)).to(dtype)


def _sites_of(program: PyroProgram) -> tuple[Site, Site]:
    """Return the latent and the observed site of a program that a bundle can hold.

    Raises:
        GraphError: It has others.
    """
    latent = [site for site in program.sites if site.role in ("latent", "from the prior")]
    observed = [site for site in program.sites if site.role == "observed"]
    if len(latent) != 1 or len(observed) != 1:
        found = [f"{site.name} ({site.role}, {site.distribution})" for site in (*latent, *observed)]
        raise NotAVAEError(f"{_BUNDLES}, got {', '.join(found)}")
    (z,), (x,) = latent, observed
    if z.role != "latent" or z.distribution != "Normal" or z.auxiliary:
        where = "in the guide alone" if z.auxiliary else f"{z.distribution}, {z.role}"
        raise NotAVAEError(f"{_BUNDLES}; {z.name} is {where}")
    if summed := [site.name for site in program.sites if site.role == "summed out"]:
        raise NotAVAEError(f"{_BUNDLES}; the model has {', '.join(summed)} too, which is summed out")
    return z, x
