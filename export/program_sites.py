"""A Pyro program with sites of any number, as a bundle holds it: by its sites."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from edgevae import (
    ArgumentSpec,
    DrawSpec,
    GraphName,
    ModelSpec,
    ProgramSpec,
    Signature,
    SiteSpec,
    TensorSpec,
    tensor,
)
from edgevae.program_spec import PRIOR
from edgevae.train.elbo import slices
from edgevae.train.program import Draw, Function, PyroProgram, RunName, derive
from edgevae.train.programs import Program

from .errors import GraphError
from .exportable import Exportable
from .program_vae import Adapted, Taken

_ROWS_AT_ONCE = 1024
_SEED = 0
_GRAPHS: tuple[GraphName, ...] = get_args(GraphName)
_TRIES = 32
_MARGIN = 1e-5  # distance of noise from the steps of a discrete draw
_STEP = 0.5  # draws of discrete distributions differ by 1 or more


class SiteProgram(Exportable):
    """A Pyro program by its sites.

    Args:
        program: The program.
        name: The program's name, for the manifest.

    Attributes:
        program: The program.

    Raises:
        GraphError: A latent is drawn by what takes no fixed amount of noise.
        TraceError: The program cannot be traced for any batch size.
    """

    def __init__(self, program: PyroProgram, *, name: str = "") -> None:
        self.program = program
        for site in self.program.sites:
            if site.is_input:
                raise GraphError(
                    f"latent {site.name} has {site.outside} draws, which take no fixed amount of noise, and a bundle "
                    "draws its latents from noise; take a distribution that reparameterizes, like LogNormal"
                )
        self._functions: dict[GraphName, Function] = {
            name: function for name, function in derive(self.program).items() if name in _GRAPHS
        }
        self._described = self._spec()
        rows = next(iter(self.program.example.values()))
        super().__init__(
            ModelSpec(
                architecture=name or program.name,
                likelihood=", ".join(site.distribution for site in self.program.sites if site.role == "observed"),
                latent="program",
                data_shape=tuple(rows.shape[1:]) or (1,),
                z_dims=(sum(self._described.latent_sizes),),
                hidden_dim=0,
                num_classes=0,
                num_components=0,
                unit_interval=False,
                has_draws="observation" in self._functions,
                program=self._described,
            )
        )

    def _spec(self) -> ProgramSpec:
        program = self.program
        return ProgramSpec(
            arguments=tuple(
                ArgumentSpec(name=name, dtype=_dtype_of(rows), shape=tuple(rows.shape[1:]))
                for name, rows in program.example.items()
            ),
            sites=tuple(
                SiteSpec(
                    name=site.name,
                    role=site.role,
                    distribution=site.distribution,
                    shape=tuple(site.row_shape),
                    parameters={key: tuple(shape) for key, shape in site.parameters.items()},
                )
                for site in program.sites
            ),
            draws={
                run: tuple(
                    DrawSpec(
                        name=self._noise_name(run, draw),
                        kind=draw.kind,
                        shape=tuple(draw.layout.shape),
                        axis=draw.layout.axis or 0,
                        repeats=draw.layout.repeats,
                    )
                    for draw in draws
                )
                for run, draws in program.draws.items()
            },
            why_other_samples=program.why_other_samples,
        )

    def _noise_name(self, run: RunName, draw: Draw) -> str:
        """Return a bundle's name of a draw: runs share it where a row of it has the same shape."""
        of_guide = {each.name: each.layout.row_shape for each in self.program.draws["posterior"]}
        same = of_guide.get(draw.name, draw.layout.row_shape) == draw.layout.row_shape
        return draw.name if same else f"{draw.name} ({run})"

    @property
    def notes(self) -> list[str]:
        """What a user should know, a sentence each."""
        return self.program.notes

    @functools.cached_property
    def programs(self) -> Mapping[GraphName, Program]:
        """The functions, by name."""
        shapes = self._described.tensors()
        dtypes = {argument.name: argument.dtype for argument in self._described.arguments}

        def described(names: Sequence[str], *, inputs: bool) -> tuple[TensorSpec, ...]:
            return tuple(
                tensor(name, *shapes[name], dtype=dtypes.get(name, "float32") if inputs else "float32")
                for name in names
            )

        found: dict[GraphName, Program] = {}
        for name, function in self._functions.items():
            run = {"elbo": self.program.run_of_densities, "prior": "prior"}.get(name, "posterior")
            noise = {draw.name: self._noise_name(run, draw) for draw in self.program.draws[run]}
            inputs = [noise.get(each, each) for each in function.inputs]
            outputs = [f"{each}{PRIOR}" if name == "prior" else each for each in function.outputs]
            signature = Signature(described(inputs, inputs=True), described(outputs, inputs=False))
            takes = [
                Taken(index, tuple(example.shape[1:]), "values", example.dtype)
                for index, example in enumerate(function.examples)
            ]
            module = Adapted(function.module, takes, [spec.row_shape for spec in signature.outputs])
            found[name] = Program(module.eval(), signature)
        return found

    def weights(self) -> Mapping[str, Tensor]:
        """Return the weights and constants of encoder and decoder by name."""
        networks: list[GraphName] = [name for name in ("encoder", "decoder") if name in self._functions]
        return {
            f"{graph}.{name}": value
            for graph in networks
            for name, value in self._functions[graph].module.state_dict().items()
        }

    @torch.no_grad()
    def elbo_of_rows(self, arguments: Mapping[str, Tensor], num_particles: int = 1) -> Tensor:
        """Return the ELBO of each row in nats, float64, shape `(batch,)`, from noise of a fixed seed."""
        count, run = len(next(iter(arguments.values()))), self.program.run_of_densities
        elbo = torch.zeros(count, dtype=torch.float64)
        with torch.random.fork_rng([]):
            torch.manual_seed(_SEED)
            for rows in slices(count, _ROWS_AT_ONCE):
                given = {name: values[rows] for name, values in arguments.items()}
                for _ in range(num_particles):
                    noise = self.program.noise(run, len(next(iter(given.values()))))
                    found = self.program.compute(run, given, noise)
                    elbo[rows] += found["log_px_z"] + found["log_pz"] - found["log_qz_x"]
        return elbo / num_particles

    @torch.no_grad()
    def outputs(self, arguments: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return inputs and outputs of all functions by name, as runs of the program give them for a fixed seed.

        Args:
            arguments: The program's arguments, the batch first.
        """
        tensors = dict(arguments)
        with torch.random.fork_rng([]):
            torch.manual_seed(_SEED)
            noise = self._steady_noise(arguments)
            for run, draws in self.program.draws.items():
                others = self.program.noise(run, len(next(iter(arguments.values()))))
                given = {each.name: noise.get(self._noise_name(run, each), others[each.name]) for each in draws}
                if run == "prior" and "prior" not in self._functions:
                    continue
                found = self.program.compute(run, arguments, given)
                tensors |= {self._noise_name(run, each): given[each.name] for each in draws}
                tensors |= {name if run != "prior" else f"{name}{PRIOR}": value for name, value in found.items()}
        used = [spec for each in self.programs.values() for spec in (*each.signature.inputs, *each.signature.outputs)]
        integers = {spec.name for spec in used if spec.dtype == "int64"}
        return {
            spec.name: tensors[spec.name].to(torch.int64 if spec.name in integers else torch.float32) for spec in used
        }

    def _steady_noise(self, arguments: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Draw noise of the posterior run; rows in which rounding could change a discrete draw are drawn again."""
        count = len(next(iter(arguments.values())))
        draws = self.program.draws["posterior"]
        noise = self.program.noise("posterior", count)
        uniform = [draw.name for draw in draws if draw.kind == "uniform"]
        for _ in range(_TRIES if uniform else 0):
            low, high = (
                self.program.compute(
                    "posterior",
                    arguments,
                    {
                        name: (value + side).clamp(0, 1 - _MARGIN) if name in uniform else value
                        for name, value in noise.items()
                    },
                )
                for side in (-_MARGIN, _MARGIN)
            )
            names = [name for name in low if name.endswith(".draw") or "." not in name]
            jumps = [
                ((low[name].float() - high[name].float()).abs() > _STEP).reshape(count, -1).any(1) for name in names
            ]
            moved = torch.stack(jumps).any(0)
            if not moved.any():
                break
            again = self.program.noise("posterior", count)
            noise = {
                name: torch.where(moved.reshape(-1, *[1] * (value.ndim - 1)), again[name], value)
                for name, value in noise.items()
            }
        return noise


def _dtype_of(rows: Tensor) -> Literal["float32", "int64"]:
    return "float32" if rows.is_floating_point() else "int64"
