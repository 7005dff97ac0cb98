"""Pyro programs beside their bundles on the CPU: `Trace_ELBO` and `Predictive`, `elbo` and `posterior_predictive`.

    python -m benchmarks.programs my_models.py:make_vae models/mine --example batch.npz

Both get the same rows, and one thread. The weights do not change the time. The ways take turns, and medians are
printed.
A bundle whose observations take no fixed amount of noise has no draws, and no row for them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pyro
import torch
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO

import edgevae
from benchmarks.timing import Call, medians, time_in_turn
from edgevae.export.loading import read_example
from edgevae.train.program import load_program

_DRAWS = 100
_ELBO, _PREDICTIVE = "elbo", f"{_DRAWS} predictive draws"


@click.command(context_settings={"show_default": True})
@click.argument("program")
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("--example", type=click.Path(exists=True, path_type=Path), required=True, help="Arguments, by name.")
@click.option("--rows", type=click.IntRange(min=1), multiple=True, default=(1, 64), help="Batch sizes.")
@click.option("--repeats", type=click.IntRange(min=1), default=7, help="Turns of each way.")
@click.option("--block-s", type=click.FloatRange(min=0), default=0.3, help="Seconds of a turn.")
def main(program: str, bundle: Path, example: Path, rows: tuple[int, ...], repeats: int, block_s: float) -> None:
    """Time PROGRAM, FILE.py:NAME or module:NAME, beside its BUNDLE."""
    torch.set_num_threads(1)
    arguments = read_example(example)
    click.echo("| rows | call | Pyro, ms | bundle, ms | times as fast |\n| --- | --- | --- | --- | --- |")
    for count in rows:
        some = {name: values[torch.arange(count) % len(values)] for name, values in arguments.items()}
        seconds = medians(time_in_turn(_calls(program, bundle, some), repeats, block_s))
        for what in [name for name in (_ELBO, _PREDICTIVE) if name in seconds]:
            theirs, ours = seconds[f"Pyro's {what}"], seconds[what]
            click.echo(f"| {count} | {what} | {theirs * 1e3:.2f} | {ours * 1e3:.2f} | {theirs / ours:.1f} |")


def _calls(program: str, bundle: Path, arguments: dict[str, torch.Tensor]) -> dict[str, Call]:
    pyro.clear_param_store()
    theirs = load_program(program)
    if theirs.owner is not None:
        theirs.owner.eval()
    arrays: dict[str, Any] = {name: values.numpy() for name, values in arguments.items()}
    ours: Any = _loaded(bundle)
    objective: Any = Trace_ELBO()
    predictive = Predictive(poutine.uncondition(theirs.model), guide=theirs.guide, num_samples=_DRAWS)
    if not isinstance(ours, edgevae.Program):  # a VAE calls its data x and its labels y
        arrays = dict(zip(("x", "y"), arrays.values(), strict=False))
    calls: dict[str, Call] = {
        f"Pyro's {_ELBO}": torch.no_grad()(lambda: objective.loss(theirs.model, theirs.guide, **arguments)),
        _ELBO: lambda: ours.elbo(**arrays, seed=0),
    }
    if ours.manifest.model.has_draws:
        calls[f"Pyro's {_PREDICTIVE}"] = torch.no_grad()(lambda: predictive(**arguments))
        calls[_PREDICTIVE] = lambda: ours.posterior_predictive(**arrays, num_samples=_DRAWS, seed=0)
    return calls


def _loaded(bundle: Path) -> edgevae.Model | edgevae.Program:
    by_site = edgevae.Bundle(bundle).manifest.model.program is not None
    load = edgevae.load_program if by_site else edgevae.load
    return load(bundle, provider="cpu", threads=1)


if __name__ == "__main__":
    main()
