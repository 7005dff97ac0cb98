"""What a finished run shows: pictures, and one page with all of them."""

from .page import REPORT_FILE
from .write import PICTURES, write_report

REPORT_FILES = (*PICTURES, REPORT_FILE)
"""Every file that a report may consist of."""

__all__ = ["PICTURES", "REPORT_FILE", "REPORT_FILES", "write_report"]
