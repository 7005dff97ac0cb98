"""The errors of the export.

ExportError
├── GraphError         a network cannot become a graph that gives the same numbers everywhere
├── StateDictError     weights from elsewhere do not fit the model
└── VerificationError  the exported graphs do not give Pyro's numbers
"""

from __future__ import annotations

from collections.abc import Sequence

from runtime import Report


class ExportError(Exception):
    """Base of everything that `export` raises on purpose."""


class GraphError(ExportError):
    """A network cannot become a graph that gives the same numbers everywhere."""


class StateDictError(ExportError):
    """Weights from elsewhere do not fit the model."""


class VerificationError(ExportError):
    """The exported graphs do not give Pyro's numbers; no bundle was written.

    Args:
        reports: The comparisons, one a format; at least one of them failed.
    """

    def __init__(self, reports: Sequence[Report]) -> None:
        failed = ", ".join(report.format for report in reports if not report.passed)
        super().__init__(f"verification against Pyro failed for {failed}; no bundle was written")
        self.reports = tuple(reports)
