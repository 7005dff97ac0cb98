"""Time to the first reconstruction, memory and disk space, with the runtime and with PyTorch.

    python -m benchmarks.footprint --bare .venv-bare/bin/python

Each is a process of its own, timed from its start. They take turns, and medians are compared. The peer is PyTorch with
the bundle's TorchScript programs, without Pyro and without training code.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click

_MIB = 2**20
_KIB_PER_MIB = 1024  # Linux gives the peak of resident memory in KiB
_RUNTIME = """
import sys, numpy, edgevae
model = edgevae.load(sys.argv[1], provider="cpu")
model.reconstruct(numpy.zeros((1, *model.data_shape), numpy.float32), seed=0)
"""
_TORCH = """
import sys, json, math, warnings, torch
warnings.simplefilter("ignore")
shape = json.load(open(sys.argv[1] + "/manifest.json"))["model"]["data_shape"]
encoder, decoder = (torch.jit.load(f"{sys.argv[1]}/{name}.ts") for name in ("encoder", "decoder"))
with torch.no_grad():
    torch.manual_seed(0)
    z_loc, z_scale = encoder(torch.zeros(1, math.prod(shape)))
    decoder(z_loc + z_scale * torch.randn_like(z_loc))
"""


def run_once(command: Sequence[str | Path]) -> tuple[float, float]:
    """Run a program to its end; return its seconds, and the peak of its resident memory in MiB.

    Linux includes the memory of the calling process before `exec`, so the caller must be small.
    """
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603 - our own program, our own Python
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise click.ClickException(f"{command[0]} failed; are the packages that it needs installed?")
    return time.perf_counter() - start, usage.ru_maxrss / _KIB_PER_MIB


def size_on_disk(python: Path) -> float:
    """Return the size of a Python's site-packages in MiB."""
    command = [str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
    folder = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603 - our Python
    return sum(path.lstat().st_size for path in Path(folder).rglob("*")) / _MIB


@click.command(context_settings={"show_default": True})
@click.option("--bundle", type=click.Path(exists=True, path_type=Path), default="models/digits-mlp", help="The model.")
@click.option("--bare", type=click.Path(exists=True, path_type=Path), required=True, help="A Python with edgevae[cpu].")
@click.option("--full", type=click.Path(exists=True, path_type=Path), default=sys.executable, help="One with PyTorch.")
@click.option("--repeats", type=click.IntRange(min=1), default=9, help="Runs of each, after one to warm up.")
def main(bundle: Path, bare: Path, full: Path, repeats: int) -> None:
    """Print the table."""
    programs = {"runtime": (bare, _RUNTIME), "PyTorch (TorchScript)": (full, _TORCH)}
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for repeat in range(repeats + 1):
        for name, (python, program) in programs.items():
            run = run_once([python, "-c", program, bundle])
            if repeat > 0:
                runs[name].append(run)
    click.echo(f"{bundle.name}, process start to exit after one reconstruction; medians of {repeats} runs")
    for name, (python, _) in programs.items():
        seconds, memory = (statistics.median(values) for values in zip(*runs[name], strict=True))
        click.echo(f"{name:22} {seconds:6.2f} s  {memory:6.0f} MiB resident  {size_on_disk(python):6.0f} MiB installed")


if __name__ == "__main__":
    main()
