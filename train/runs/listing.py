"""The list of runs: its order, its columns, and the same as JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import click

from ..config import ModelConfig
from .summary import RunSummary
from .table import ABSENT, Column, printable, show_table

Order = Literal["date", "elbo", "name"]


def in_order(runs: Sequence[RunSummary], order: Order) -> list[RunSummary]:
    """Return the runs with the newest first, or the highest test ELBO, or by name; those without an ELBO last."""
    if order == "name":
        return sorted(runs, key=lambda run: run.name)
    newest = sorted(runs, key=lambda run: run.date, reverse=True)
    if order == "date":
        return newest
    return sorted(newest, key=lambda run: math.inf if run.test_elbo_nats is None else -run.test_elbo_nats)


def show_runs(runs: Sequence[RunSummary]) -> None:
    """Write the runs as a table, with a column for the validation ELBO where a run has one, and then their faults."""
    validated = any(run.validation_elbo_nats is not None for run in runs)
    columns = (
        Column("run"),
        Column("data and model", wrap=True),
        Column("epochs", number=True),
        Column("test ELBO", number=True),
        *([Column("validation", number=True)] if validated else []),
        Column("date", wrap=True),
        Column("size", number=True),
        Column("state"),
    )
    show_table(columns, [_cells(run, validated=validated) for run in runs])
    for run in runs:
        if run.fault:
            click.echo("\n" + printable(f"{run.name} is damaged: {run.fault}"))


def as_json(run: RunSummary) -> dict[str, Any]:
    """Return the run as what JSON can hold; ELBOs in nats an observation."""
    return {
        "name": run.name,
        "path": str(run.path),
        "state": run.state,
        "fault": run.fault,
        "dataset": run.dataset or None,
        "model": run.model and dataclasses.asdict(run.model),
        "epoch": run.last and run.last.epoch,
        "epochs": run.epochs,
        "test_elbo_nats": run.test_elbo_nats,
        "num_particles": run.num_particles,
        "validation_elbo_nats": run.validation_elbo_nats,
        "date": run.date.isoformat(timespec="seconds"),
        "size_bytes": run.size_bytes,
    }


def _nats(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.2f}"


def _cells(run: RunSummary, *, validated: bool) -> list[str]:
    epoch = run.last.epoch if run.last else 0
    return [
        run.name,
        f"{run.dataset}: {_described(run.model)}" if run.model else ABSENT,
        f"{epoch}/{run.epochs}" if run.epochs else ABSENT,
        _nats(run.test_elbo_nats),
        *([_nats(run.validation_elbo_nats)] if validated else []),
        f"{run.date:%Y-%m-%d %H:%M}",
        _size(run.size_bytes),
        run.state,
    ]


def _described(model: ModelConfig) -> str:
    sizes = "-".join(map(str, (model.data_dim, model.hidden_dim, *model.z_dims)))
    latent = f"mixture of {model.components}" if model.latent == "mixture" else model.latent
    classes = [f"{model.num_classes} classes"] if model.num_classes else []
    return ", ".join([f"{model.architecture} {sizes}", model.likelihood, latent, *classes])


def _size(size_bytes: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes} B"
