"""What a model is released as: its version and its license."""

from __future__ import annotations

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.version import InvalidVersion, Version

from export._errors import ExportError


def check_version(version: str) -> str:
    """Return a version as packages spell it, like `1.0.0`.

    Raises:
        ExportError: It is none, by the rules for versions of Python packages (PEP 440).
    """
    try:
        return str(Version(version))
    except InvalidVersion as error:
        raise ExportError(f"the model's version must be like 1.0.0, got {version!r}") from error


def check_license(expression: str) -> str:
    """Return a license expression in its canonical spelling.

    Raises:
        ExportError: It is no SPDX license expression.
    """
    try:
        return str(canonicalize_license_expression(expression))
    except InvalidLicenseExpression as error:
        raise ExportError(
            f"the model's license must be an SPDX expression like Apache-2.0 or CC-BY-SA-4.0, or LicenseRef- and a "
            f"name of your own, got {expression!r}"
        ) from error
