"""Pyro programs as the export sees them: a VAE where they can be one, and else their sites."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from numpy.typing import ArrayLike
from torch import Tensor

from edgevae.train import ProgramError, TraceError
from edgevae.train.program import example_of, run_program

from .errors import GraphError, NotAVAEError
from .program_sites import SiteProgram
from .program_vae import ProgramVAE


def open_program(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    example: Mapping[str, ArrayLike | Tensor],
    *,
    static: Collection[str] = (),
    data_shape: tuple[int, ...] | None = None,
    name: str = "",
) -> ProgramVAE | SiteProgram:
    """Return a program as a VAE where it has one normal latent and one observed site, and else by its sites.

    Args:
        model: The model.
        guide: The guide.
        example: Arguments by name.
        static: Names of arguments that have no batch axis.
        data_shape: Shape of one observation for users of a VAE's bundle.
        name: The program's name, for the manifest.

    Raises:
        GraphError: The program cannot be exported; the message names the line, and what to do.
    """
    try:
        program = run_program(model, guide, example_of(example), static)
        try:
            return ProgramVAE(program, data_shape=data_shape, name=name)
        except NotAVAEError:
            return SiteProgram(program, name=name)
    except (ProgramError, TraceError) as error:
        raise GraphError(f"the program cannot be exported: {error}") from error
