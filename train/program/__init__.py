"""Functions of arrays from a Pyro program: its sites, its draws, its densities."""

from .check import ProgramReport, check_program, example_of, run_program
from .graphs import Function, TracedRun, check_amortized, derive
from .loading import LoadedProgram, load_program
from .program import TERMS, Draw, PyroProgram, RunName, Site

__all__ = [
    "TERMS",
    "Draw",
    "Function",
    "LoadedProgram",
    "ProgramReport",
    "PyroProgram",
    "RunName",
    "Site",
    "TracedRun",
    "check_amortized",
    "check_program",
    "derive",
    "example_of",
    "load_program",
    "run_program",
]
