"""What a Pyro program consists of, and what stands in the way of its export: `check_program`."""

from __future__ import annotations

import dataclasses
import os
import traceback
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import pyro
import torch
from numpy.typing import ArrayLike
from pyro import poutine
from torch import Tensor

from ..errors import ProgramError, TraceError
from ..tracing import line_of_error
from .graphs import derive
from .program import Draw, PyroProgram, Site, bound, quietly

_MCMC = str(Path(pyro.__file__).parent / "infer" / "mcmc") + os.sep


@dataclasses.dataclass(frozen=True)
class ProgramReport:
    """A Pyro program, as the export sees it; `str(report)` is a table.

    Args:
        arguments: Shape of a row of each argument, by name.
        sites: The sample statements.
        draws: The noise that guide and model take, in order.
        functions: Inputs and outputs of each function that a bundle would hold, by name.
        notes: What a reader should know, a sentence each.
        problems: What stands in the way of the export; empty if nothing does.
    """

    arguments: Mapping[str, tuple[int, ...]]
    sites: tuple[Site, ...] = ()
    draws: tuple[Draw, ...] = ()
    functions: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing stands in the way."""
        return not self.problems

    def __str__(self) -> str:
        lines = [f"argument {name}: rows of {_shape(shape)}" for name, shape in self.arguments.items()]
        if self.sites:
            rows = [("site", "role", "distribution", "row", "parameters")]
            for site in self.sites:
                parameters = ", ".join(f"{name} {_shape(shape)}" for name, shape in site.parameters.items())
                rows.append((site.name, site.role, site.distribution, _shape(site.row_shape), parameters))
            widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
            lines += [
                "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
            ]
        lines += [
            f"{name}: {', '.join(inputs)} -> {', '.join(outputs)}" for name, (inputs, outputs) in self.functions.items()
        ]
        lines += [f"note: {note}" for note in self.notes] + [f"problem: {problem}" for problem in self.problems]
        return "\n".join(
            [*lines, "All functions can be derived." if self.passed else "Not all functions can be derived."]
        )


def check_program(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    example: Mapping[str, ArrayLike | Tensor],
    *,
    static: Collection[str] = (),
) -> ProgramReport:
    """Say what a Pyro program consists of, and what stands in the way of its export.

    It runs the program on a few rows of the example and traces it; nothing is trained, changed or written. Call it in
    your tests, and before a long training.

    Args:
        model: The model.
        guide: The guide, which takes the same arguments.
        example: Arguments by the names that the model gives them, the batch first, at least one row; of the dtype that
            the program takes. Numbers in double precision become float32.
        static: Names of arguments that have no batch axis.

    Returns:
        The sites, the functions that can be derived, and the problems. An error of the program itself is a problem too.
    """
    tensors = example_of(example)
    report = ProgramReport({name: tuple(tensor.shape[1:]) for name, tensor in tensors.items() if name not in static})
    try:
        program = run_program(model, guide, tensors, static)
    except ProgramError as error:
        return dataclasses.replace(report, problems=(str(error),))
    report = dataclasses.replace(
        report, sites=program.sites, draws=program.draws["posterior"], notes=tuple(program.notes)
    )
    try:
        functions = derive(program)
    except (ProgramError, TraceError) as error:
        return dataclasses.replace(report, problems=(str(error),))
    return dataclasses.replace(
        report, functions={name: (function.inputs, function.outputs) for name, function in functions.items()}
    )


def example_of(example: Mapping[str, ArrayLike | Tensor]) -> dict[str, Tensor]:
    """Return the arguments of a program as tensors; numbers in double precision become float32."""
    tensors = {name: torch.as_tensor(value) for name, value in example.items()}
    return {name: tensor.float() if tensor.dtype == torch.float64 else tensor for name, tensor in tensors.items()}


def run_program(
    model: Callable[..., Any], guide: Callable[..., Any], example: Mapping[str, Tensor], static: Collection[str] = ()
) -> PyroProgram:
    """Run a program on a few rows of its example, and return what it consists of.

    Raises:
        ProgramError: It cannot be run with given noise, its rows depend on each other, or it fails; the message names
            the line.
    """
    try:
        return PyroProgram(model, guide, example, static)
    except ProgramError:
        raise
    except Exception as error:  # a stranger's program raises anything
        where = line_of_error(error) or "the program"
        if any(frame.f_code.co_filename.startswith(_MCMC) for frame, _ in traceback.walk_tb(error.__traceback__)):
            raise ProgramError(
                f"{where} runs MCMC, which looks at the data for as long as it takes, and is no function of given "
                "noise. Fit a guide with a network that takes the data, with SVI, and export that one"
            ) from error
        if _runs(model, guide, example):
            rows = len(next(tensor for name, tensor in example.items() if name not in static))
            raise ProgramError(
                f"{where} works for the example's {rows} rows, and not for fewer: the code fixes the size of the "
                "batch. Write x.shape[0] or -1 in place of a number"
            ) from error
        said = str(error).strip().partition("\n")[0]
        raise ProgramError(
            f"{where} fails on {', '.join(example)}: {type(error).__name__}" + (f": {said}" if said else "")
        ) from error


def _runs(model: Callable[..., Any], guide: Callable[..., Any], example: Mapping[str, Tensor]) -> bool:
    """Return whether a program runs with the whole example."""
    try:
        with torch.random.fork_rng([]), quietly():
            args, kwargs = bound(model, example)
            trace = poutine.trace(guide).get_trace(*args, **kwargs)
            poutine.replay(model, trace)(*args, **kwargs)
    except Exception:  # noqa: BLE001 - a stranger's program raises anything
        return False
    return True


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "one number"
