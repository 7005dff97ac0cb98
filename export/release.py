"""What a model is released as: its version and its license."""

from __future__ import annotations

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.version import InvalidVersion, Version

from .errors import ExportError


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


def check_spelling(version: str, license_: str) -> None:
    """Refuse what is not spelled as the two checks above return it.

    Parsers pass over line breaks, and a line break would begin a line of its own in a wheel's metadata.

    Args:
        version: The model's version.
        license_: The model's license; empty for none stated.

    Raises:
        ExportError: One is none, or is spelled in another way.
    """
    for what, stated, spelled in (
        ("version", version, check_version(version)),
        ("license", license_, check_license(license_) if license_ else ""),
    ):
        if stated != spelled:
            raise ExportError(f"the model's {what} must be spelled {spelled!r}, got {stated!r}; export the model again")
