"""`python -m train.runs`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import click

from ..errors import RunError
from .comparison import compare as compare_runs
from .listing import Order, as_json, in_order, show_runs
from .reading import read_runs, summarize
from .side_by_side import comparison_json, show_comparison
from .summary import RunSummary

_RUNS = Path("runs")
_DAMAGED = 1
_json_option = click.option("--json", "to_json", is_flag=True, help="Write JSON, for programs.")


class _DamagedError(click.ClickException):
    exit_code = _DAMAGED


class _ListByDefault(click.Group):
    """A group that lists where no command is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        named = args and args[0] in {*self.commands, *ctx.help_option_names}
        return super().parse_args(ctx, args if named else ["list", *args])


@click.group(
    cls=_ListByDefault,
    context_settings={"show_default": True, "help_option_names": ["-h", "--help"]},
    subcommand_metavar="[FOLDER] | list [FOLDER] | compare A B",
    options_metavar="",
)
def main() -> None:
    """List the runs in a folder, by default runs/, or compare two of them.

    Only small files are read: the configuration and the metrics, never the weights. Without a command the runs are
    listed; a folder that is named like a command is written ./list or ./compare.

    Exit codes: 0 done; 1 a run is damaged; 2 wrong usage, or there is no such folder.

    \b
    Examples:
      python -m train.runs
      python -m train.runs list --sort elbo
      python -m train.runs compare digits-mlp digits-conv
    """


@main.command("list")
@click.argument("folder", type=click.Path(path_type=Path), default=_RUNS)
@click.option(
    "--sort",
    type=click.Choice(get_args(Order)),
    default="date",
    help="Newest first, or the highest test ELBO first, or by name.",
)
@_json_option
@click.pass_context
def list_command(ctx: click.Context, /, folder: Path, sort: Order, to_json: bool) -> None:
    """List the runs in FOLDER, or the run that FOLDER is.

    ELBOs are in nats an observation; that of a finished run is of its final evaluation, otherwise it is the last
    epoch's. A run is finished; or interrupted, by Ctrl-C say, with a checkpoint of that moment; or unfinished: still
    going, or killed; or damaged, and then a line below says what is wrong. The date is that of its last epoch.

    \b
    Examples:
      python -m train.runs list
      python -m train.runs list runs --sort elbo --json
    """
    try:
        runs = in_order(read_runs(folder), sort)
    except RunError as error:
        raise click.UsageError(str(error)) from error
    if to_json:
        _echo_json([as_json(run) for run in runs])
    elif runs:
        show_runs(runs)
    else:
        click.echo(f"There are no runs in {folder}; train one with python -m train.", err=True)
    if any(run.fault for run in runs):
        ctx.exit(_DAMAGED)


@main.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@_json_option
def compare(a: Path, b: Path, to_json: bool) -> None:
    """Show where the choices of two runs differ, and what came of them.

    A and B are folders of runs, or names of runs in runs/. A difference is B's number less A's; it is left out, and a
    note says why, where the two do not measure the same: other data, binarization or likelihood, or only one of the
    models sees labels.

    \b
    Examples:
      python -m train.runs compare runs/digits-mlp runs/digits-conv
      python -m train.runs compare digits-mlp digits-conv --json
    """
    first, second = _whole_run(a), _whole_run(b)
    comparison = compare_runs(first, second)
    if to_json:
        _echo_json(comparison_json(first, second, comparison))
    else:
        show_comparison(first, second, comparison)


def _whole_run(path: Path) -> RunSummary:
    folder = path if path.is_dir() else _RUNS / path
    if not folder.is_dir():
        raise click.UsageError(f"there is no run {path}, nor {folder}; python -m train.runs lists those that are there")
    run = summarize(folder)
    if run.fault:
        raise _DamagedError(f"the run in {folder} is damaged: {run.fault}")
    return run


def _echo_json(content: Any) -> None:
    click.echo(json.dumps(content, indent=2, allow_nan=False))
