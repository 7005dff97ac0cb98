"""The report of a finished run: figures, and one page that holds them all."""

from .page import write_report

__all__ = ["write_report"]
