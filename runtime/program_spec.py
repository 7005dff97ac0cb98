"""What a manifest says of a Pyro program: its arguments, sites and draws."""

import math
from typing import Annotated, Literal

import msgspec

from .record import MAX_VALUES, Record, Size, Text

Shape = Annotated[tuple[Size, ...], msgspec.Meta(max_length=64)]
Role = Literal["latent", "observed", "deterministic", "summed out", "from the prior"]
RunName = Literal["posterior", "prior", "enumerated"]
PRIOR = " (prior)"
"""Follows the name of a latent whose value the graph `prior` gives."""


class ArgumentSpec(Record, frozen=True, kw_only=True):
    """An argument of model and guide.

    Args:
        name: As the model calls it.
        dtype: `float32`, or `int64` for integers such as labels.
        shape: Of a row; empty for one number.
    """

    name: Text
    dtype: Literal["float32", "int64"]
    shape: Shape


class SiteSpec(Record, frozen=True, kw_only=True):
    """A sample statement.

    Args:
        name: Its name.
        role: `latent`: sampled in the guide. `observed`: has a value in the model. `deterministic`: computed by the
            model. `summed out`: in the model alone and discrete; densities sum over its values. `from the prior`: in
            the model alone; drawn from its prior.
        distribution: Class of the distribution; empty for a deterministic site.
        shape: Of a row of its value.
        parameters: Shape of a row of each parameter of its distribution, by name.
    """

    name: Text
    role: Role
    distribution: Text
    shape: Shape
    parameters: dict[Text, Shape]


class DrawSpec(Record, frozen=True, kw_only=True):
    """An input of noise. Its values are taken from the stream of a seed in the order of the program.

    Args:
        name: Of the input.
        kind: Standard normal, or uniform in [0, 1).
        shape: In the program, without the batch axis.
        axis: Where the batch axis is.
        repeats: How many entries along it a row has, next to each other.
    """

    name: Text
    kind: Literal["normal", "uniform"]
    shape: Shape
    axis: Annotated[int, msgspec.Meta(ge=0, le=64)]
    repeats: Size

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of a row where the batch is the first axis."""
        return self.shape if self.repeats == 1 else (*self.shape[: self.axis], self.repeats, *self.shape[self.axis :])


class ProgramSpec(Record, frozen=True, kw_only=True):
    """A Pyro program.

    Args:
        arguments: What model and guide take, in order.
        sites: The sample statements, the guide's first.
        draws: The noise of each run, in order: `posterior` runs the guide, then the model, then draws the observed
            sites; `prior` runs the model alone; `enumerated` runs guide and model with all values of discrete sites.
        why_other_samples: Why a seed gives other samples than Pyro's; empty where it gives the same.
    """

    arguments: tuple[ArgumentSpec, ...]
    sites: tuple[SiteSpec, ...]
    draws: dict[RunName, tuple[DrawSpec, ...]]
    why_other_samples: Text = ""

    def __post_init__(self) -> None:
        names = [argument.name for argument in self.arguments]
        if not names or len(set(names)) < len(names):
            raise ValueError("a program needs arguments, with names of their own")
        if max(map(math.prod, self.tensors().values())) > MAX_VALUES:
            raise ValueError(f"a row of an argument, a site or a draw must have at most {MAX_VALUES} values")

    @property
    def latent_sizes(self) -> tuple[int, ...]:
        """Number of values in a row of each latent."""
        return tuple(math.prod(site.shape) for site in self.sites if site.role == "latent")

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of a row of each tensor that a graph may take or give, by name."""
        shapes: dict[str, tuple[int, ...]] = {argument.name: argument.shape for argument in self.arguments}
        for site in self.sites:
            shapes.setdefault(site.name, site.shape)
            shapes |= {f"{site.name}.{name}": shape for name, shape in site.parameters.items()}
            shapes |= {f"{site.name}{what}": site.shape for what in (".mean", ".draw", PRIOR)}
        shapes |= {draw.name: draw.row_shape for draws in self.draws.values() for draw in draws}
        return {**shapes, "log_px_z": (), "log_pz": (), "log_qz_x": ()}
