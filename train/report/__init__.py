"""The report of a finished run: figures, and one page that holds them all."""

from .page import REPORT_FILES, write_report

__all__ = ["REPORT_FILES", "write_report"]
