"""The errors of the export.

ExportError
├── GraphError         a network cannot be exported as a graph that gives the same numbers everywhere
│   ├── NotAVAEError            a program has other sites than one normal latent and one observed
│   └── NothingToQuantizeError  a network has nothing that int8 could compute in integers
├── PrecisionError     a lower precision loses more of the ELBO than it may
├── StateDictError     weights from elsewhere cannot be read, or do not fit the model
└── VerificationError  the exported graphs do not give Pyro's numbers
"""

from __future__ import annotations

from collections.abc import Sequence

from edgevae import Report
from edgevae.errors import printable


class ExportError(Exception):
    """Base class of the export's errors."""


class GraphError(ExportError):
    """A network cannot be exported as a graph that gives the same numbers everywhere."""


class NotAVAEError(GraphError):
    """A Pyro program has other sites than one normal latent and one observed; it can be exported by its sites."""


class NothingToQuantizeError(GraphError):
    """A network has nothing that int8 could compute in integers."""


class PrecisionError(ExportError):
    """A lower precision loses more of the ELBO than it may; no bundle was written.

    Args:
        precision: The precision.
        lost_nats: Loss of mean ELBO compared with float32, nats a row; may be NaN.
        limit_nats: The limit.
    """

    def __init__(self, precision: str, lost_nats: float, limit_nats: float) -> None:
        super().__init__(
            f"{precision} loses {lost_nats:.3f} nats a row of the mean ELBO, more than the limit of {limit_nats:g}; no "
            f"bundle was written. Leave out --precision {precision}, or raise --max-elbo-lost"
        )
        self.precision, self.lost_nats, self.limit_nats = precision, lost_nats, limit_nats


class StateDictError(ExportError):
    """Weights from elsewhere cannot be read, or do not fit the model.

    Args:
        message: What is wrong; names in it come from the file, and are shown as `printable` text.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class VerificationError(ExportError):
    """The exported graphs do not give Pyro's numbers; no bundle was written.

    Args:
        reports: The verifications, one a format; at least one failed.
    """

    def __init__(self, reports: Sequence[Report]) -> None:
        failed = [(report.format, check) for report in reports for check in report.checks if not check.passed]
        found = ", ".join(
            f"{name} {check.graph} {check.output} is off by {check.max_abs_diff:.2e} where {check.tolerance:.0e} is "
            f"allowed ({check.worst})"
            for name, check in failed
        )
        super().__init__(f"verification against Pyro failed, and no bundle was written: {found}")
        self.reports = tuple(reports)
