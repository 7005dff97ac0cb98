"""Functions that ONNX has no operator for, or that engines compute badly, written with standard operators."""

from __future__ import annotations

from typing import Any

from torch.export import ExportedProgram

from .sums import LGAMMAS, join_lgammas
from .table import DECOMPOSITIONS

__all__ = ["decompose"]


def decompose(exported_program: ExportedProgram) -> ExportedProgram:
    """Return the program with our functions in place of PyTorch's; all other operators stay as they are.

    Args:
        exported_program: A traced program. It is not changed.

    Raises:
        TraceError: A function has no form of standard operators: a Cholesky factor or a triangular system of more than
            8 rows, or polygamma of order 2 and higher.
    """
    if not _has_ours(exported_program):
        return exported_program  # each pass takes as long as a trace
    # First all but lgamma: a view holds for the strides that its operator gives, so layers are replaced before views.
    with_lgammas = exported_program.run_decompositions(
        {operator: function for operator, function in DECOMPOSITIONS.items() if operator not in LGAMMAS}
    )
    if not _has_ours(with_lgammas):
        return with_lgammas
    join_lgammas(with_lgammas)
    return with_lgammas.run_decompositions(DECOMPOSITIONS)


def _has_ours(program: ExportedProgram) -> bool:
    """Return whether a program has operators that we have functions for."""
    names = set(map(_name, DECOMPOSITIONS))
    return any(_name(node.target) in names for node in program.graph.nodes)


def _name(target: Any) -> str:
    """Return the name of an operator without its overload, also of the one that works in place."""
    return getattr(target, "_opname", "").removesuffix("_")
