"""List trained runs without reading their weights: `python -m edgevae.train.runs list`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, get_args

import click
import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

# Absolute imports: in `python -m train.runs`, relative ones would load the package again under the name `train`.
from edgevae.cli.sections import SafeGroup
from edgevae.errors import printable
from edgevae.train.errors import RunError
from edgevae.train.evaluation import Evaluation
from edgevae.train.run import (
    CHECKPOINT_FILE,
    CONFIG_FILE,
    EVALUATION_FILE,
    METRICS_FILE,
    SCHEMA_VERSION,
    WEIGHTS_FILE,
    EpochMetrics,
    RunConfig,
    config_of,
)

State = Literal["finished", "interrupted", "unfinished", "damaged"]
Order = Literal["date", "elbo", "name"]

_DAMAGED = 1  # exit code
_ABSENT = "-"
_PIPE_WIDTH = 100_000  # columns; no line of a file or a pipe is folded


@dataclasses.dataclass(frozen=True)
class RunSummary:
    """A run as its small files describe it.

    Args:
        path: The run's folder.
        date: Of the last epoch's metrics, or of the folder before the first epoch has ended; local time.
        size_bytes: Of all files in the folder.
        fault: What is damaged, with the file's name; `None` for an intact run.
        config: The content of `config.json`; `None` if it cannot be read.
        metrics: One entry an epoch, in order.
        evaluations: By the name of the set; empty for a run that is not finished.
    """

    path: Path
    date: datetime
    size_bytes: int
    fault: str | None
    config: RunConfig | None = None
    metrics: tuple[EpochMetrics, ...] = ()
    evaluations: Mapping[str, Evaluation] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name or self.path.resolve().name

    @property
    def state(self) -> State:
        """How far the training got.

        `interrupted`: stopped early, with a checkpoint. `unfinished`: still running, or killed.
        """
        if self.fault:
            return "damaged"
        if self.metrics and not self.metrics[-1].complete:
            return "interrupted"
        return "finished" if self.evaluations else "unfinished"

    @property
    def epoch(self) -> int:
        """The last epoch, 0 before the first has ended."""
        return self.metrics[-1].epoch if self.metrics else 0

    @property
    def test_elbo(self) -> tuple[float | None, int | None]:
        """Test ELBO in nats an observation, and its number of particles.

        It is the final evaluation's, or else that of the epoch whose weights the run has.
        """
        if "test" in self.evaluations:
            return self.evaluations["test"].elbo_nats, self.evaluations["test"].num_particles
        return (self._best.test_elbo_nats, self._best.num_particles) if self._best else (None, None)

    @property
    def validation_elbo_nats(self) -> float | None:
        """Validation ELBO, of the same weights as `test_elbo`; `None` without validation data."""
        if "validation" in self.evaluations:
            return self.evaluations["validation"].elbo_nats
        return self._best.validation_elbo_nats if self._best else None

    @property
    def _best(self) -> EpochMetrics | None:
        """The epoch whose weights the run has: the best by validation ELBO, or without such data the last."""
        if not self.metrics or self.metrics[-1].validation_elbo_robust_nats is None:
            return self.metrics[-1] if self.metrics else None
        whole = [line for line in self.metrics if line.complete] or self.metrics
        elbos = [line.validation_elbo_robust_nats for line in whole]
        return whole[max(range(len(whole)), key=lambda index: -math.inf if (elbo := elbos[index]) is None else elbo)]


def read_runs(folder: Path) -> list[RunSummary]:
    """Return the runs in `folder`, or `folder` itself if it is a run; sorted by name.

    Hidden folders are left out: a training that was killed may leave one.

    Raises:
        RunError: `folder` does not exist, or cannot be read.
    """
    try:
        if _is_run(folder):
            return [summarize(folder)]
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and _is_run(path))
    except OSError as error:
        raise RunError(
            f"the folder {folder} cannot be read ({error.strerror}); "
            "train a run with python -m train, or name the folder that holds runs"
        ) from error
    return [summarize(path) for path in paths]


def summarize(path: Path) -> RunSummary:
    """Return the summary of the run in the folder `path`; of a damaged run, the fault and whatever could be read."""
    found: dict[str, Any] = {}
    fault = None
    try:
        found["config"] = _read_config(path / CONFIG_FILE)
        if (path / METRICS_FILE).exists():
            found["metrics"] = tuple(_decode(path / METRICS_FILE, EpochMetrics, lines=True))
        if (path / EVALUATION_FILE).exists():
            found["evaluations"] = _decode(path / EVALUATION_FILE, dict[str, Evaluation])
        if found.get("metrics") and not (path / WEIGHTS_FILE).is_file():
            fault = f"{WEIGHTS_FILE} is missing"
    except RunError as error:
        fault = str(error)
    return RunSummary(path, _date(path), _size_bytes(path), fault, **found)


def in_order(runs: Sequence[RunSummary], order: Order) -> list[RunSummary]:
    """Return the runs by date (newest first), by test ELBO (highest first, runs without one last) or by name."""
    if order == "name":
        return sorted(runs, key=lambda run: run.name)
    newest = sorted(runs, key=lambda run: run.date, reverse=True)
    if order == "date":
        return newest
    return sorted(newest, key=lambda run: math.inf if run.test_elbo[0] is None else -run.test_elbo[0])


@click.group(
    cls=SafeGroup,
    context_settings={"show_default": True, "help_option_names": ["-h", "--help"]},
    invoke_without_command=True,
)
@click.pass_context
def main(ctx: click.Context) -> None:
    """List trained runs. Without a command, those in runs/ are listed."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_command)


@main.command("list")
@click.argument("folder", type=click.Path(path_type=Path), default=Path("runs"))
@click.option(
    "--sort",
    "order",
    type=click.Choice(get_args(Order)),
    default="date",
    help="Newest first, highest test ELBO first, or by name.",
)
@click.option("--json", "to_json", is_flag=True, help="Write JSON, for programs.")
@click.pass_context
def list_command(ctx: click.Context, /, folder: Path, order: Order, to_json: bool) -> None:
    """List the runs in FOLDER, or the run that FOLDER is.

    Only small files are read, never the weights. ELBOs are in nats an observation, from the final evaluation, or from
    the last epoch if the run is not finished. The date is that of the last epoch.

    A run is finished; interrupted (by Ctrl-C, with a checkpoint); unfinished (still running, or killed); or damaged:
    a line below the table says what is wrong.

    Exit codes: 0 done; 1 a run is damaged; 2 wrong usage, or no such folder.

    \b
    Examples:
      python -m train.runs list
      python -m train.runs list runs --sort elbo --json
    """
    try:
        runs = in_order(read_runs(folder), order)
    except RunError as error:
        raise click.UsageError(str(error)) from error
    if to_json:
        click.echo(json.dumps([_as_json(run) for run in runs], indent=2, allow_nan=False))
    elif runs:
        _show(runs)
    else:
        click.echo(f"There are no runs in {folder}; train one with python -m train.", err=True)
    if any(run.fault for run in runs):
        ctx.exit(_DAMAGED)


def _as_json(run: RunSummary) -> dict[str, Any]:
    test_elbo_nats, num_particles = run.test_elbo
    return {
        "name": run.name,
        "path": str(run.path),
        "state": run.state,
        "fault": run.fault,
        "dataset": run.config and run.config.dataset.name,
        "model": run.config and dataclasses.asdict(run.config.model),
        "epoch": run.epoch or None,
        "epochs": run.config and run.config.training.epochs,
        "test_elbo_nats": test_elbo_nats,
        "num_particles": num_particles,
        "validation_elbo_nats": run.validation_elbo_nats,
        "date": run.date.isoformat(timespec="seconds"),
        "size_bytes": run.size_bytes,
    }


def _show(runs: Sequence[RunSummary]) -> None:
    """Print the runs as a table, and below it what is wrong with damaged ones."""
    console = Console()
    if console.is_terminal:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    else:
        console = Console(width=_PIPE_WIDTH)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    validated = any(run.validation_elbo_nats is not None for run in runs)
    table.add_column("run", no_wrap=True, overflow="fold")
    table.add_column("data and model")
    table.add_column("epochs", justify="right", no_wrap=True)
    table.add_column("test ELBO", justify="right", no_wrap=True)
    if validated:
        table.add_column("validation", justify="right", no_wrap=True)
    table.add_column("date")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for run in runs:
        cells = [
            run.name,
            f"{run.config.dataset.name}: {run.config.model.description}" if run.config else _ABSENT,
            f"{run.epoch}/{run.config.training.epochs}" if run.config else _ABSENT,
            _nats(run.test_elbo[0]),
            *([_nats(run.validation_elbo_nats)] if validated else []),
            f"{run.date:%Y-%m-%d %H:%M}",
            _size(run.size_bytes),
            run.state,
        ]
        table.add_row(*(Text(printable(cell)) for cell in cells))
    console.print(table)
    for run in runs:
        if run.fault:
            click.echo("\n" + printable(f"{run.name} is damaged: {run.fault}"))


def _nats(value: float | None) -> str:
    return _ABSENT if value is None else f"{value:.2f}"


def _size(size_bytes: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes} B"


def _read_config(path: Path) -> RunConfig:
    version = _decode(path, dict[str, Any]).get("schema_version")
    if version != SCHEMA_VERSION:
        raise RunError(f"{path.name} has schema version {version}, this edgevae reads {SCHEMA_VERSION}")
    try:
        return config_of(_decode(path, dict[str, Any]))
    except msgspec.MsgspecError as error:
        raise RunError(f"{path.name}: {error}") from error


def _decode(path: Path, kind: Any, *, lines: bool = False) -> Any:
    try:
        decoder = msgspec.json.Decoder(kind)
        return (decoder.decode_lines if lines else decoder.decode)(path.read_bytes())
    except FileNotFoundError as error:
        raise RunError(f"{path.name} is missing") from error
    except OSError as error:
        raise RunError(f"{path.name}: {error.strerror}") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise RunError(f"{path.name}: {error}") from error


def _is_run(path: Path) -> bool:
    try:
        return any((path / file).exists() for file in (CONFIG_FILE, METRICS_FILE, WEIGHTS_FILE, CHECKPOINT_FILE))
    except OSError:  # an unreadable folder is listed as damaged
        return True


def _date(path: Path) -> datetime:
    try:
        seconds = (path / METRICS_FILE).stat().st_mtime
    except OSError:
        seconds = path.lstat().st_mtime
    return datetime.fromtimestamp(seconds, timezone.utc).astimezone()


def _size_bytes(path: Path) -> int:
    total = 0
    for folder, _, files in os.walk(path):
        for file in files:
            with contextlib.suppress(OSError):  # a running training replaces files
                total += (Path(folder) / file).lstat().st_size
    return total


if __name__ == "__main__":
    main(prog_name="python -m train.runs")
