"""A Pyro program as a function of arrays: its sites, its draws, and its densities for given noise.

The program is the only description of the model. It runs under effect handlers: random draws come from noise
(`draws`), latent values go from the guide to the model as in `Trace_ELBO`, discrete sites are summed over as in
`TraceEnum_ELBO` (`enumeration`). What a run gives is named after the sites:

| name | tensor |
| --- | --- |
| `z` | the value of site z |
| `z.loc` | parameter `loc` of its distribution: in the guide for a latent, in the model for an observed site |
| `x.mean`, `x.draw` | the mean of the distribution of an observed site, and a draw of it |
| `log_px_z`, `log_pz`, `log_qz_x` | log p(x|z), log p(z) and log q(z|x), of all sites together, in nats |

Each has the batch as its first axis, wherever the program has it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import os
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_factor, site_is_subsample
from torch import Tensor, nn
from torch.distributions import Distribution

from ..errors import ProgramError
from ..tracing import Line
from .draws import Decision, LiftedDraws, NoiseKind
from .enumeration import Enumeration, eliminate, expected, has_axis

Role = Literal["latent", "observed", "deterministic", "summed out", "from the prior"]
RunName = Literal["posterior", "prior", "enumerated"]
Shape = tuple[int, ...]
Tensors = dict[str, Tensor]

TERMS = ("log_px_z", "log_pz", "log_qz_x")
_PARTS = ("observed", "latent", "guide")
TRACE_ROWS = 3
_PROBE_ROWS = (TRACE_ROWS, 5)
_DRAWN_OUTSIDE = ("Multinomial", "DirichletMultinomial")  # take as many draws as their count says
_WITHOUT_MEAN = ("Categorical", "Cauchy", "HalfCauchy", "Multinomial", "DirichletMultinomial")
"""Distributions whose mean is NaN, or that of a count that the data choose."""

_UNIT_INTERVAL = ("Bernoulli", "ContinuousBernoulli", "Beta")

_PYRO = str(Path(pyro.__file__).parent) + os.sep
_MODULE_DIVIDER = "$$$"  # in the names under which `pyro.module` registers parameters


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the batch is in a tensor of the program.

    Args:
        axis: The axis along which the rows are; `None` where there is none.
        repeats: How many entries of it a row has, next to each other.
        shape: Shape without that axis.
    """

    axis: int | None
    repeats: int
    shape: Shape

    @staticmethod
    def of(what: str, small: Sequence[int], large: Sequence[int]) -> Layout:
        """Compare the shapes of a tensor for the two batch sizes of the probes.

        Raises:
            ProgramError: No axis grows in proportion to the rows, or several do.
        """
        grown = [axis for axis, sizes in enumerate(zip(small, large, strict=False)) if sizes[0] != sizes[1]]
        shapes = f"{what} has shape {tuple(small)} for {_PROBE_ROWS[0]} rows and {tuple(large)} for {_PROBE_ROWS[1]}"
        if len(small) != len(large) or len(grown) > 1:
            raise ProgramError(f"{shapes}; expected one axis that grows with the rows, as they must be independent")
        if not grown:
            return Layout(None, 1, tuple(small))
        (axis,) = grown
        repeats = small[axis] // _PROBE_ROWS[0]
        if [small[axis], large[axis]] != [repeats * rows for rows in _PROBE_ROWS]:
            raise ProgramError(f"{shapes}; expected an axis that grows in proportion to the rows")
        return Layout(axis, repeats, (*small[:axis], *small[axis + 1 :]))

    @property
    def row_shape(self) -> Shape:
        """Shape of a row where the batch is the first axis."""
        if self.axis is None or self.repeats == 1:
            return self.shape
        return (*self.shape[: self.axis], self.repeats, *self.shape[self.axis :])

    def to_rows(self, tensor: Tensor, batch: int) -> Tensor:
        """Return a tensor of the program with the batch as its first axis."""
        if self.axis is None:
            return tensor.expand(batch, *tensor.shape)
        if self.repeats > 1:
            tensor = tensor.unflatten(self.axis, (batch, self.repeats))
        return tensor.movedim(self.axis, 0) if self.axis else tensor

    def from_rows(self, rows: Tensor) -> Tensor:
        """Return a tensor as the program has it, from one with the batch as its first axis."""
        if self.axis is None:
            return rows[0]
        tensor = rows.movedim(0, self.axis) if self.axis else rows
        return tensor.flatten(self.axis, self.axis + 1) if self.repeats > 1 else tensor


@dataclasses.dataclass(frozen=True)
class Draw:
    """An input of noise.

    Args:
        name: Its name, `z.noise`; of a site that draws several times `z.noise`, `z.noise_2`, ...
        site: The site that draws it; empty where the program draws outside of its sample statements.
        kind: Standard normal, or uniform in [0, 1).
        layout: Its shape in the program, and so in the stream of PyTorch's generator.
        exact: Whether PyTorch's CPU generator gives the same value from the same noise.
    """

    name: str
    site: str
    kind: NoiseKind
    layout: Layout
    exact: bool


@dataclasses.dataclass(frozen=True)
class Site:
    """A sample statement.

    Args:
        name: Its name.
        role: `latent`: sampled in the guide. `observed`: has a value in the model. `deterministic`: computed by the
            model. `summed out`: in the model alone and discrete; densities sum over its values. `from the prior`: in
            the model alone and not discrete; the model's own draw is used, as in `Trace_ELBO`.
        distribution: Class of the distribution, without wrappers like `Independent`; empty for a deterministic site.
        parameters: Shape of a row of each parameter, by name.
        row_shape: Shape of a row of its value.
        dtype: Of its value.
        outside: What draws it, like `gamma`, where that is no function of a fixed amount of noise; else empty.
        auxiliary: Whether it is in the guide alone.
        enumerated: Whether the guide asks to sum over its values.
    """

    name: str
    role: Role
    distribution: str
    parameters: Mapping[str, Shape]
    row_shape: Shape
    dtype: torch.dtype
    outside: str = ""
    auxiliary: bool = False
    enumerated: bool = False

    @property
    def unit_interval(self) -> bool:
        """Whether its values must be in [0, 1]."""
        return self.distribution in _UNIT_INTERVAL

    @property
    def is_input(self) -> bool:
        """Whether it is a latent that is drawn outside, so that its value is an input."""
        return bool(self.outside) and self.role == "latent"


@dataclasses.dataclass(frozen=True, eq=False)
class _Found:
    """What a run gave, as the program has it: its tensors, its log-densities by part and site, and its draws.

    `densities` are those of the ELBO, `unscaled` without the factors of `poutine.scale`.
    """

    tensors: Tensors
    densities: Mapping[str, Tensors]
    unscaled: Mapping[str, Tensors]
    draws: LiftedDraws
    guide: poutine.Trace
    model: poutine.Trace

    def all(self) -> Tensors:
        """The tensors, and the densities as `log observed x`."""
        return self.tensors | {
            f"log {part} {name}": tensor for part, found in self.densities.items() for name, tensor in found.items()
        }


class PyroProgram(nn.Module):
    """A model and its guide, for arguments of known shapes.

    Args:
        model: The model, called with the arguments.
        guide: The guide, called with the same.
        example: The arguments by the names that the model gives them, the batch first, at least one row. An argument
            that is left out has its default.
        static: Names of arguments that have no batch axis. They are constants.

    Attributes:
        example: The arguments that have a batch axis.
        sites: The sample statements, in the order in which the guide and then the model reach them.
        draws: The noise of each run, in order. `posterior` runs the guide, then the model, then draws the observed
            sites; `prior` runs the model alone; `enumerated`, which only a program with discrete sites to sum over has,
            runs guide and model with all values of these sites.
        initial: Parameters that Pyro's parameter store did not have: they have their initial values.
        plate_nesting: Number of the axes of plates.

    Raises:
        ProgramError: The program cannot be run with given noise, or its rows depend on each other.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        example: Mapping[str, Tensor],
        static: Collection[str] = (),
    ) -> None:
        super().__init__()
        self._model, self._guide = model, guide
        self.owners = nn.ModuleList(modules_used(model, guide))
        self._static = {name: tensor for name, tensor in example.items() if name in static}
        self.example = {name: tensor for name, tensor in example.items() if name not in static}
        _check_example(self.example)
        self.stored = nn.Module()
        self._parameters_of_store = _Parameters(self.stored)
        self._layouts: dict[tuple[RunName, str], Layout] = {}
        self._axes: dict[str, int] = {}  # of the discrete sites that are summed over
        self._plates: dict[str, frozenset[int]] = {}  # axes of the plates that the model's own are in
        self.plate_nesting = 0
        self.needs_all_values = False
        self._decisions: dict[RunName, list[Decision]] = {}  # of the run that a trace repeats
        self.draws: dict[RunName, tuple[Draw, ...]] = {}
        self.sites: tuple[Site, ...] = ()
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            self._probe()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put the program's modules into evaluation mode; each has its own mode again afterwards."""
        modes = {module: module.training for module in self.owners.modules()}
        self.owners.eval()
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode

    def renew_parameters(self) -> None:
        """Take the present values of Pyro's parameter store."""
        self._parameters_of_store.renew()

    @property
    def name(self) -> str:
        """Name of the model's class, or of a plain function."""
        owner = getattr(self._model, "__self__", None)
        if owner is not None:
            return type(owner).__name__
        return str(getattr(self._model, "__qualname__", type(self._model).__name__))

    @property
    def initial(self) -> tuple[str, ...]:
        """Parameters that Pyro's parameter store did not have: they have their initial values."""
        return tuple(self._parameters_of_store.initial)

    @property
    def notes(self) -> list[str]:
        """What a reader of a check should know, a sentence each."""
        notes = [
            f"parameter {name} is not in Pyro's parameter store: it has its initial value" for name in self.initial
        ]
        for site in self.sites:
            if site.role == "summed out" or site.enumerated:
                notes.append(f"densities sum over all values of {site.name}")
            elif site.role == "from the prior":
                notes.append(f"{site.name} is in the model alone: it is drawn from its prior, as Trace_ELBO does")
            elif site.outside:
                notes.append(f"{site.name} has {site.outside} draws: no graph draws them")
        if self.needs_all_values:
            notes.append(
                "the model runs only with all values of its discrete sites at once: nothing decodes single ones"
            )
        if self.why_other_samples:
            notes.append(f"a seed gives other samples than Pyro's: {self.why_other_samples}")
        taken = {
            (each.file, each.line): each.value for found in self._decisions.values() for each in found if each.line
        }
        notes += [
            f"line {line} of {Path(file).name} takes {value} out of a tensor, which becomes a constant"
            for (file, line), value in taken.items()
            if not file.startswith(_PYRO)
        ]
        return notes

    @property
    def run_of_densities(self) -> RunName:
        """The run that gives log_px_z, log_pz and log_qz_x."""
        return "enumerated" if self._axes else "posterior"

    @property
    def why_other_samples(self) -> str:
        """Why a seed gives other samples than Pyro's; empty where it gives the same."""
        for site in self.sites:
            if site.is_input:
                return f"{site.name} has {site.outside} draws"
        for draw in self.draws["posterior"]:
            if not draw.exact and any(site.name == draw.site and site.role != "observed" for site in self.sites):
                return f"{draw.site} is drawn by inverting its distribution function, which PyTorch does not do"
        return ""

    def rows(self, count: int) -> Tensors:
        """Return the first rows of the example, repeated as often as needed."""
        picked = torch.arange(count) % len(next(iter(self.example.values())))
        return {name: tensor[picked] for name, tensor in self.example.items()}

    def noise(self, run: RunName, count: int) -> Tensors:
        """Draw noise for a run from PyTorch's generator, in the order and shapes of the program; the batch first."""
        noise: Tensors = {}
        for draw in self.draws[run]:
            axis, shape = draw.layout.axis or 0, draw.layout.shape
            size = (*shape[:axis], count * draw.layout.repeats, *shape[axis:])
            drawn = torch.randn(size) if draw.kind == "normal" else torch.rand(size)
            noise[draw.name] = draw.layout.to_rows(drawn, count)
        return noise

    def compute(self, run: RunName, arguments: Mapping[str, Tensor], noise: Mapping[str, Tensor]) -> Tensors:
        """Run the program on given noise.

        Args:
            run: One that `draws` has.
            arguments: The arguments, the batch first.
            noise: The noise of `draws[run]` by name, and by their names the values of sites that are drawn outside; the
                batch first.

        Returns:
            What the run gives, the batch first; see the table at the top. `run_of_densities` gives the three densities.
        """
        batch = next(iter(arguments.values())).shape[0]
        given: dict[str, list[Tensor]] = {}
        for draw in self.draws[run]:
            given.setdefault(draw.site, []).append(draw.layout.from_rows(noise[draw.name]))
        values = {
            site.name: self._layouts[run, site.name].from_rows(noise[site.name])
            for site in self.sites
            if site.is_input and site.name in noise
        }
        found = self._run(run, arguments, given, values)
        rows = {name: self._layouts[run, name].to_rows(tensor, batch) for name, tensor in found.tensors.items()}
        if run == self.run_of_densities:
            rows.update(self._terms(found, batch))
        return rows

    def _run(
        self,
        run: RunName,
        arguments: Mapping[str, Tensor],
        noise: Mapping[str, Sequence[Tensor]] | None = None,
        values: Mapping[str, Tensor] | None = None,
    ) -> _Found:
        decisions = self._decisions.get(run) if torch.compiler.is_exporting() else None
        draws, enumeration = (
            LiftedDraws(noise, values, decisions),
            Enumeration(self._axes if run == "enumerated" else {}),
        )
        args, kwargs = bound(self._model, {**self._static, **arguments})
        mode = contextlib.nullcontext() if torch.compiler.is_exporting() else self.evaluating()
        with mode, quietly(), self._parameters_of_store, draws, enumeration:
            if run == "prior":
                model = poutine.trace(self._model).get_trace(*args, **kwargs)
                tensors = {name: node["value"] for name, node in _unobserved(model)}
                for name, node in _unobserved(model):
                    tensors |= _named(name, parameters_of(node["fn"]))
                return _Found(tensors, {}, {}, draws, model, model)
            guide = poutine.trace(self._guide).get_trace(*args, **kwargs)
            if run == "posterior" and self.needs_all_values:
                model = poutine.Trace()
            else:
                model = poutine.trace(poutine.replay(self._model, guide)).get_trace(*args, **kwargs)
            tensors = self._tensors(guide, model, draws) if run == "posterior" else {}
        nodes = {
            "observed": [each for each in _statements(model) if each[1]["is_observed"]],
            "latent": _unobserved(model),
            "guide": _statements(guide),
        }
        densities = {part: {name: node["log_prob"] for name, node in found} for part, found in nodes.items()}
        unscaled = {part: {name: _unscaled(node) for name, node in found} for part, found in nodes.items()}
        return _Found(tensors, densities, unscaled, draws, guide, model)

    def _tensors(self, guide: poutine.Trace, model: poutine.Trace, draws: LiftedDraws) -> Tensors:
        """Return values, parameters, means and draws of the sites."""
        tensors: Tensors = {}
        for name, node in _unobserved(guide):
            tensors |= {name: node["value"], **_named(name, parameters_of(node["fn"]))}
        for name, node in _statements(model, deterministic=True):
            if name in guide.nodes and not node["is_observed"]:
                continue
            if not site_is_factor(node):
                tensors[name] = node["value"]
            if node["is_observed"] and not (site_is_factor(node) or _is_deterministic(node)):
                tensors |= {**_named(name, parameters_of(node["fn"])), **_named(name, _mean_of(node["fn"]))}
                if (kind := type(unwrapped(node["fn"])).__name__) in _DRAWN_OUTSIDE:
                    draws.outside[name] = kind.lower()
                elif not (self.sites and next(site for site in self.sites if site.name == name).outside):
                    draw = draws.of(name, node["fn"])
                    if name not in draws.outside:
                        tensors[f"{name}.draw"] = draw
        return tensors

    def _terms(self, found: _Found, batch: int) -> Tensors:
        """Return log_px_z, log_pz and log_qz_x, shape `(batch,)` each."""
        observed, latent, guide = (
            {name: self._factor(part, name, tensor, batch) for name, tensor in found.densities[part].items()}
            for part in _PARTS
        )
        weights = [
            (axis, self._factor("guide", name, found.unscaled["guide"][name], batch))
            for name, axis in self._axes.items()
            if name in guide
        ]

        def total(factors: Iterable[Tensor]) -> Tensor:
            sums = [self._sum_rows(expected(factor, weights)) for factor in factors]
            return functools.reduce(torch.add, sums) if sums else torch.zeros(batch)

        tied = {name: part for part, each in zip(_PARTS, (observed, latent), strict=False) for name in each}
        tied = {name: part for name, part in tied.items() if self._is_tied(found.densities[part][name])}
        log_px_z = total(factor for name, factor in observed.items() if name not in tied)
        log_pz = total(factor for name, factor in latent.items() if name not in tied)
        if tied:
            scale = _common_scale(found.model.nodes[name] for name in tied)
            factors = {name: self._factor(part, name, found.unscaled[part][name], batch) for name, part in tied.items()}
            of_latents = [factor for name, factor in factors.items() if tied[name] == "latent"]
            marginal = scale * total(self._without_summed(of_latents))
            log_pz = log_pz + marginal
            if len(of_latents) < len(factors):  # log p(x|z) = log p(x, z) - log p(z)
                log_px_z = log_px_z + (scale * total(self._without_summed(list(factors.values()))) - marginal)
        return {"log_px_z": log_px_z, "log_pz": log_pz, "log_qz_x": total(guide.values())}

    def _is_tied(self, factor: Tensor) -> bool:
        """Return whether a log-density depends on a discrete site of the model alone."""
        return any(has_axis(factor, self._axes[name]) for name in self._plates)

    def _without_summed(self, factors: Sequence[Tensor]) -> list[Tensor]:
        """Sum the discrete sites of the model alone out of a product of densities."""
        return eliminate(
            factors, [(self._axes[name], plates) for name, plates in self._plates.items()], self.plate_nesting
        )

    def _factor(self, part: str, name: str, density: Tensor, batch: int) -> Tensor:
        """Return a log-density that has one entry a row along the batch's axis."""
        layout = self._layouts[self.run_of_densities, f"log {part} {name}"]
        if layout.axis is None or layout.repeats == 1:
            return density
        return density.unflatten(layout.axis, (batch, layout.repeats)).sum(layout.axis + 1)

    def _sum_rows(self, factor: Tensor) -> Tensor:
        """Sum over all axes but the batch's."""
        return factor.movedim(self._batch_axis, 0).flatten(1).sum(1) if factor.ndim > 1 else factor

    # What the program is, found by running it

    def _probe(self) -> None:
        """Find sites, draws and layouts from runs of two batch sizes."""
        try:
            small, large = self._run_both("posterior")
        except Exception:  # raised again unless the program may need all values of its discrete sites at once
            self.needs_all_values = True
            small, large = self._run_both("posterior")
            if not any(_is_enumerated(node) for _, node in _unobserved(large.guide)):
                raise
        if self.initial:  # the draws of their initial values are none of the program's
            small, large = self._run_both("posterior")
        guide, model = large.guide, large.model
        in_guide = [name for name, node in _unobserved(guide) if _is_enumerated(node)]
        alone = [(name, node) for name, node in _unobserved(model) if name not in guide.nodes]
        summed_out = {name: node for name, node in alone if node["fn"].has_enumerate_support}
        self.plate_nesting = max(tensor.ndim for found in large.densities.values() for tensor in found.values())
        self._axes = {name: -1 - self.plate_nesting - place for place, name in enumerate([*in_guide, *summed_out])}
        self._plates = {name: _long_axes(node["log_prob"]) for name, node in summed_out.items()}
        self._compare("posterior", small, large)
        self._batch_axis = self._find_batch_axis(large)
        self.sites = self._describe(large)
        if self._axes:
            enumerated = self._run_both("enumerated")
            self._compare("enumerated", *enumerated)
            if self.needs_all_values:
                self.sites += tuple(
                    Site(
                        name,
                        "observed",
                        type(unwrapped(node["fn"])).__name__,
                        {},
                        node["value"].shape[1:],
                        node["value"].dtype,
                    )
                    for name, node in _statements(enumerated[1].model)
                    if node["is_observed"] and not site_is_factor(node)
                )
        if not self.needs_all_values:
            self._compare("prior", *self._run_both("prior"))
        self._check_rows_apart(large)

    def _run_both(self, run: RunName) -> tuple[_Found, _Found]:
        """Run with the two batch sizes of the probes."""
        small, large = (self._run(run, self.rows(count)) for count in _PROBE_ROWS)
        return small, large

    def _compare(self, run: RunName, small: _Found, large: _Found) -> None:
        """Keep a run's layouts and draws, from records of the two batch sizes."""
        tensors, others = small.all(), large.all()
        drawn, other_drawn = (
            [draw for draw in found.draws.drawn if draw.site not in found.draws.outside] for found in (small, large)
        )
        if tensors.keys() != others.keys() or len(drawn) != len(other_drawn):
            raise ProgramError(_other_statements(small.draws.lines, large.draws.lines))
        for name, tensor in tensors.items():
            self._layouts[run, name] = Layout.of(name, tensor.shape, others[name].shape)
        draws: list[Draw] = []
        for one, other in zip(drawn, other_drawn, strict=True):
            layout = Layout.of(f"the noise of {one.site}", one.noise.shape, other.noise.shape)
            if layout.axis is None:
                where = f"site {one.site!r}" if one.site else "the program"
                raise ProgramError(
                    f"{where} draws once for all rows; expected a draw for each row: put the statement into the plate "
                    "of the batch, or condition it on a value"
                )
            place = sum(draw.site == one.site for draw in draws) + 1
            name = f"{one.site or 'program'}.noise" + (f"_{place}" if place > 1 else "")
            draws.append(Draw(name, one.site, one.kind, layout, one.exact))
        self.draws[run] = tuple(draws)
        self._decisions[run] = small.draws.decided
        _check_branches(small.draws.decided, large.draws.decided)

    def _find_batch_axis(self, found: _Found) -> int:
        """Return the batch's axis in log-densities, negative."""
        axes: dict[int, str] = {}
        for part, tensors in found.densities.items():
            for name, tensor in tensors.items():
                layout = self._layouts["posterior", f"log {part} {name}"]
                if layout.axis is None:
                    raise ProgramError(
                        f"site {name!r} has one log-density of shape {layout.shape} for all rows; expected one for "
                        "each row: is the batch a part of the event (to_event), or the statement outside of its plate?"
                    )
                axes.setdefault(layout.axis - tensor.ndim, name)
        if len(axes) > 1:
            raise ProgramError(f"the batch is another axis of log-densities in {' and '.join(axes.values())}")
        return next(iter(axes))

    def _describe(self, found: _Found) -> tuple[Site, ...]:
        """Describe the sample statements."""
        latent = dict(_unobserved(found.guide))
        sites = []
        for name, node in {**dict(_statements(found.model, deterministic=True)), **latent}.items():
            if site_is_factor(node):
                continue
            role: Role = "latent"
            if _is_deterministic(node):
                role = "deterministic"
            elif node["is_observed"]:
                role = "observed"
            elif name not in latent:
                role = "summed out" if name in self._axes else "from the prior"
            prefix = f"{name}."
            site = Site(
                name=name,
                role=role,
                distribution="" if role == "deterministic" else type(unwrapped(node["fn"])).__name__,
                parameters={
                    key[len(prefix) :]: layout.row_shape
                    for (run, key), layout in self._layouts.items()
                    if run == "posterior" and key.startswith(prefix) and not key.endswith((".mean", ".draw"))
                },
                row_shape=self._layouts["posterior", name].row_shape,
                dtype=node["value"].dtype,
                outside=found.draws.outside.get(name, ""),
                auxiliary=name in latent and name not in found.model.nodes,
                enumerated=name in latent and name in self._axes,
            )
            sites.append(site)
        return tuple(sorted(sites, key=lambda site: site.role != "latent"))

    def _check_rows_apart(self, large: _Found) -> None:
        """Check that a row's numbers depend on that row alone, with the noise of a run."""
        few, many = _PROBE_ROWS
        noise = self.noise("posterior", many)
        values = {
            site.name: self._layouts["posterior", site.name].to_rows(large.tensors[site.name], many)
            for site in self.sites
            if site.is_input
        }
        all_rows = self.compute("posterior", self.rows(many), noise | values)
        first = {name: tensor[:few] for name, tensor in (noise | values).items()}
        for name, tensor in self.compute("posterior", self.rows(few), first).items():
            if name.endswith(".draw"):  # a function of parameters and noise, which rounding may move by a step
                continue
            if not torch.allclose(tensor.float(), all_rows[name][:few].float(), rtol=1e-3, atol=1e-4, equal_nan=True):
                raise ProgramError(
                    f"{name} of a row depends on the other rows of the batch; expected rows that are independent given "
                    "the weights. Batch statistics are one reason: use BatchNorm with running statistics"
                )


def _other_statements(few: Mapping[str, Line | None], many: Mapping[str, Line | None]) -> str:
    """Say which sites, of those by their lines, depend on the number of rows, and what to do."""
    differ = {name: line for name, line in {**few, **many}.items() if (name in few) != (name in many)}
    if not differ:
        return "the program draws more often for more rows; draw for all rows at once, in the plate of the batch"
    first, names = next(iter(differ.items())), ", ".join(differ)
    where = f"{first[1]} makes" if first[1] else "the program makes"
    return (
        f"{where} {names} for some numbers of rows only: a loop over the rows has other sample statements for each "
        "batch. Make one statement for all rows, inside of pyro.plate, and apply networks to the whole batch"
    )


def _check_branches(decided: Sequence[Decision], others: Sequence[Decision]) -> None:
    """Raise `ProgramError` if a branch is taken both ways."""
    for one, other in zip(decided, others, strict=False):
        same_line = one.line and (one.file, one.line) == (other.file, other.line)
        if same_line and isinstance(one.value, bool) and one.value != other.value:
            raise ProgramError(
                f"line {one.line} of {Path(one.file).name} branches on the data, and takes both ways in the example; "
                "a graph is the same for all data. Choose by torch.where(condition, a, b) in place of if"
            )


class _Parameters(Messenger):
    """Gives `pyro.param` the values of the first run, as buffers of a module; registers nothing with Pyro.

    Args:
        stored: Where the values are kept.
    """

    def __init__(self, stored: nn.Module) -> None:
        super().__init__()
        self._stored = stored
        self._names: dict[str, str] = {}
        self.initial: list[str] = []

    def renew(self) -> None:
        """Take the present values of Pyro's parameter store, as far as it has them."""
        store = pyro.get_param_store()
        for name, attribute in self._names.items():
            if name in store:
                setattr(self._stored, attribute, store[name].detach().clone())
        self.initial = [name for name in self.initial if name not in store]

    def _pyro_param(self, msg: Any) -> None:
        name, arguments = msg["name"], msg["args"]
        if _MODULE_DIVIDER in name:  # `pyro.module` registers a module's own parameter
            msg["value"] = arguments[1]
        elif name in self._names:
            msg["value"] = getattr(self._stored, self._names[name])
        elif name not in pyro.get_param_store():
            self.initial.append(name)

    def _pyro_post_param(self, msg: Any) -> None:
        name = msg["name"]
        if _MODULE_DIVIDER not in name and name not in self._names:
            self._names[name] = f"parameter_{len(self._names)}"
            self._stored.register_buffer(self._names[name], msg["value"].detach().clone())


def parameters_of(distribution: Distribution) -> Tensors:
    """Return the parameters of a distribution by their names.

    Where it can be made with probabilities or with logits, these are what it was made with, and the probabilities in
    any case. Of a transformed distribution they are the base's, called `base_loc` and the like.
    """
    inner = unwrapped(distribution)
    names = list(inner.arg_constraints)
    found: Tensors = {}
    for name in names:
        value = inner.__dict__.get(name)
        if value is None and {"probs": "logits", "logits": "probs"}.get(name) not in names:
            value = getattr(inner, name, None)
        if isinstance(value, Tensor):
            found[name] = value
    if "probs" in names and "logits" in names:
        holder = next((each for each in _holders(inner) if "_param" in each.__dict__), inner)
        made_with = "logits" if holder.__dict__.get("logits") is getattr(holder, "_param", None) else "probs"
        if made_with == "probs":
            found.pop("logits", None)
        found[made_with] = getattr(inner, made_with)
        found["probs"] = inner.probs
    if not found:
        found = {name: value for name in names if isinstance(value := getattr(inner, name, None), Tensor)}
    if (base := getattr(inner, "base_dist", None)) is not None:
        if "gate" in found or "gate_logits" in found:  # zero-inflated
            found |= {name: value.expand(inner.batch_shape) for name, value in parameters_of(base).items()}
        elif not names:
            found |= {f"base_{name}": value for name, value in parameters_of(base).items()}
    return found


def _holders(distribution: Any) -> list[Any]:
    """Return the distribution, and the one that it is made of, like the categorical of a one-hot categorical."""
    names = ("_categorical", "_bernoulli")  # PyTorch has no public way to what a distribution was made with
    return [distribution, *(getattr(distribution, name) for name in names if hasattr(distribution, name))]


def unwrapped(distribution: Any) -> Any:
    """Return a distribution without `Independent`, masks and expansions."""
    while type(distribution).__name__ in _WRAPPERS:
        distribution = distribution.base_dist
    return distribution


_WRAPPERS = {"Independent", "ReshapedDistribution", "MaskedDistribution", "ExpandedDistribution"}


def _mean_of(distribution: Distribution) -> Tensors:
    """Return the mean of a distribution as `mean`, or nothing where it has none."""
    inner = unwrapped(distribution)
    if type(inner).__name__ == "StudentT":  # whose mean is NaN where df <= 1; this one is the median there
        return {"mean": inner.loc.expand(inner.batch_shape)}
    try:
        mean = distribution.mean
    except NotImplementedError:  # so say transformed distributions, for one
        return {}
    return {} if type(inner).__name__ in _WITHOUT_MEAN else {"mean": mean}


def _named(site: str, tensors: Tensors) -> Tensors:
    return {f"{site}.{name}": tensor for name, tensor in tensors.items()}


def _statements(trace: poutine.Trace, *, deterministic: bool = False) -> list[tuple[str, Any]]:
    """Return the sample statements of a trace, without those of plates."""
    return [
        (name, node)
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and not site_is_subsample(node) and (deterministic or not _is_deterministic(node))
    ]


def _unobserved(trace: poutine.Trace) -> list[tuple[str, Any]]:
    return [(name, node) for name, node in _statements(trace) if not node["is_observed"]]


def _is_deterministic(node: Any) -> bool:
    return bool((node["infer"] or {}).get("_deterministic"))


def _is_enumerated(node: Any) -> bool:
    return (node["infer"] or {}).get("enumerate") is not None and bool(node["fn"].has_enumerate_support)


def _unscaled(node: Any) -> Tensor:
    """Return the log-density of a site without the factor of `poutine.scale`, but with its mask."""
    density: Tensor = scale_and_mask(node["unscaled_log_prob"], 1.0, node["mask"])
    return density


def _common_scale(nodes: Iterable[Any]) -> Any:
    """Return the factor of `poutine.scale` of sites that are summed over together.

    Raises:
        ProgramError: They have different ones.
    """
    first, *others = [(node["name"], node["scale"]) for node in nodes]
    for name, scale in others:
        if isinstance(scale, Tensor) or isinstance(first[1], Tensor) or scale != first[1]:
            raise ProgramError(
                f"sites {first[0]!r} and {name!r}, which are summed over together, have different scales; expected one "
                "poutine.scale for all of them"
            )
    return first[1]


def _long_axes(tensor: Tensor) -> frozenset[int]:
    return frozenset(axis for axis in range(-tensor.ndim, 0) if tensor.shape[axis] != 1)


def modules_used(*functions: Callable[..., Any]) -> list[nn.Module]:
    """Return the modules that functions are, are methods of, or refer to; none that is a part of another."""
    found: list[object] = []
    for function in functions:
        each: Any = function
        while each is not None:
            owner = getattr(each, "__self__", None)
            found += [each, owner]
            if not isinstance(owner, nn.Module):
                found += getattr(owner, "__dict__", {}).values()
            plain = getattr(each, "__func__", each)
            if inspect.isfunction(plain):
                variables = inspect.getclosurevars(plain)
                found += [*variables.nonlocals.values(), *variables.globals.values()]
            each = each.func if isinstance(each, functools.partial) else getattr(each, "__wrapped__", None)
    modules = list({id(each): each for each in found if isinstance(each, nn.Module)}.values())
    parts = {id(part) for module in modules for part in module.modules() if part is not module}
    return [module for module in modules if id(module) not in parts]


def bound(function: Callable[..., Any], arguments: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return arguments by position and by name, for model and guide, which may call them by other names."""
    signature = inspect.signature(function)
    try:
        bound = signature.bind(**arguments)
    except TypeError as error:
        names = ", ".join(signature.parameters)
        raise ProgramError(
            f"the example does not fit the model, whose arguments are {names}: {error}; give each array its name"
        ) from error
    return bound.args, bound.kwargs


def _check_example(example: Mapping[str, Tensor]) -> None:
    sizes = {name: tensor.shape[0] if tensor.ndim else None for name, tensor in example.items()}
    if not sizes or None in sizes.values() or len(set(sizes.values())) > 1 or 0 in sizes.values():
        found = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in example.items()) or "nothing"
        raise ProgramError(
            f"the example must be arrays with the same number of rows, at least one, got {found}; name arguments that "
            "have no rows as static"
        )


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Run Pyro without gradients, without checks of values, and without touching its parameter store."""
    store = pyro.get_param_store()
    with torch.no_grad(), pyro.validation_enabled(False), store.scope(store.get_state()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the program's own were shown when it was trained
        yield
