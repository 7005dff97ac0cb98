"""Several numbers in one option of a command line."""

from __future__ import annotations

from typing import Any

import click


class Numbers(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions of click only
    """Numbers with commas between them, like `0,16`.

    Args:
        example: What to show where the value is none.
        kind: What each of them is.
        count: How many there must be; `None` for any number.
    """

    name = "numbers"

    def __init__(self, example: str, kind: type[float] = float, count: int | None = None) -> None:
        self._example, self._kind, self._count = example, kind, count

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """Return the numbers; what they must be is the caller's to say."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(self._kind(number) for number in value.split(","))
        except ValueError:
            numbers = ()
        if not numbers or self._count not in {None, len(numbers)}:
            count = "" if self._count is None else f"{self._count} "
            self.fail(
                f"expected {count}{self.name} with commas between them, like {self._example}, got {value!r}", param, ctx
            )
        return numbers


class Sizes(Numbers):
    """Integers with commas between them, like `32,16`.

    Args:
        example: See `Numbers`.
        count: See `Numbers`.
    """

    name = "sizes"

    def __init__(self, example: str, count: int | None = None) -> None:
        super().__init__(example, int, count)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """Return the sizes, each at least 1."""
        sizes = super().convert(value, param, ctx)
        if min(sizes) < 1:
            self.fail(f"expected sizes of at least 1, got {min(sizes)}", param, ctx)
        return sizes
