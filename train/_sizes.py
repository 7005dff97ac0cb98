"""Sizes on a command line."""

from __future__ import annotations

import click


class Sizes(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions of click only
    """Sizes with commas between them, like `32,16`.

    Args:
        example: What to show where the value is none.
    """

    name = "sizes"

    def __init__(self, example: str) -> None:
        self._example = example

    def convert(
        self, value: str | tuple[int, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Return the sizes; what they must be is the caller's to say."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(size) for size in value.split(","))
        except ValueError:
            self.fail(f"expected sizes with commas between them, like {self._example}, got {value!r}", param, ctx)
