"""A comparison of two runs, shown, and as JSON."""

from __future__ import annotations

import json
from typing import Any

import click

from .comparison import Comparison, Metric
from .summary import RunSummary
from .table import ABSENT, Column, printable, show_table


def show_comparison(a: RunSummary, b: RunSummary, comparison: Comparison) -> None:
    """Write the options that differ, the numbers, and what is to be said of them."""
    first, second = _names(a, b)
    if comparison.options:
        rows = [[name, _option(x), _option(y)] for name, (x, y) in comparison.options.items()]
        show_table([Column("option"), Column(first, wrap=True), Column(second, wrap=True)], rows)
    else:
        click.echo("No option differs.")
    click.echo()
    columns = [Column("metric"), *(Column(header, number=True) for header in (first, second, "difference"))]
    show_table(columns, [_cells(metric) for metric in comparison.metrics])
    for note in comparison.notes:
        click.echo("\n" + printable(note))


def comparison_json(a: RunSummary, b: RunSummary, comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as what JSON can hold."""
    return {
        "a": str(a.path),
        "b": str(b.path),
        "options": {name: {"a": x, "b": y} for name, (x, y) in comparison.options.items()},
        "metrics": {
            metric.name: {"a": metric.a, "b": metric.b, "difference": metric.difference}
            for metric in comparison.metrics
        },
        "notes": list(comparison.notes),
    }


def _names(a: RunSummary, b: RunSummary) -> tuple[str, str]:
    return (a.name, b.name) if a.name != b.name else (str(a.path), str(b.path))


def _cells(metric: Metric) -> list[str]:
    difference = metric.difference
    sign = "+" if difference is not None and difference > 0 else ""
    return [metric.name, _number(metric.a), _number(metric.b), sign + _number(difference)]


def _number(value: float | None) -> str:
    if value is None:
        return ABSENT
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def _option(value: Any) -> str:
    if value is None:
        return ABSENT
    return value if isinstance(value, str) else json.dumps(value)
