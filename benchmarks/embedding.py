"""Size and start of three ways to ship a model in an application, each in a new environment.

    python -m benchmarks.embedding --bundle models/mnist-mlp

The size is everything that was installed, with the bundle and a copied runtime. The seconds are medians from the start
of a process to its first generated image.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import NamedTuple

import click

import edgevae
from edgevae.export import build_wheel

_MIB = 2**20
_REPOSITORY = Path(__file__).parent.parent
_PROGRAM = "import sys, {0}; {0}.load({1}).generate(1, seed=0)"


class Way(NamedTuple):
    """What pip installs, the program that makes an image, and the files that are shipped beside site-packages."""

    installs: tuple[str, ...]
    program: str
    beside: tuple[Path, ...]


def ways(folder: Path, bundle: Path) -> dict[str, Way]:
    """Return the three ways, by name."""
    wheel = build_wheel(bundle, folder)
    package = wheel.name.partition("-")[0]
    copied = folder / "vendored_vae"
    shutil.copytree(Path(edgevae.__file__).parent, copied, ignore=shutil.ignore_patterns("__pycache__"))
    path = repr(str(bundle.resolve()))
    return {
        "pip install 'edgevae[cpu]'": Way((f"{_REPOSITORY}[cpu]",), _PROGRAM.format("edgevae", path), (bundle,)),
        "runtime/ copied": Way(
            ("numpy", "msgspec", "onnxruntime"), _PROGRAM.format("vendored_vae", path), (bundle, copied)
        ),
        "the model's wheel": Way((str(wheel),), _PROGRAM.format(package, ""), ()),
    }


def size(folder: Path) -> int:
    """Return the bytes of a folder's files."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def environment(folder: Path, installs: tuple[str, ...]) -> tuple[Path, int]:
    """Make an environment and install into it; return its Python and the installed bytes."""
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    empty = size(folder)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *installs], check=True)  # noqa: S603 - our own words
    return python, size(folder) - empty


@click.command(context_settings={"show_default": True})
@click.option("--bundle", type=click.Path(exists=True, path_type=Path), default="models/mnist-mlp", help="The model.")
@click.option("--repeats", type=click.IntRange(min=1), default=9, help="Runs of each, after one to warm up.")
def main(bundle: Path, repeats: int) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pythons: dict[str, tuple[Path, Way, int]] = {}
        for index, (title, way) in enumerate(ways(folder, bundle).items()):
            python, grown = environment(folder / f"venv{index}", way.installs)
            pythons[title] = python, way, grown + sum(map(size, way.beside))
        seconds: dict[str, list[float]] = {title: [] for title in pythons}
        for repeat in range(repeats + 1):
            for title, (python, way, _) in pythons.items():
                start = time.perf_counter()
                subprocess.run([python, "-c", way.program], cwd=folder, check=True)  # noqa: S603 - our own program
                if repeat > 0:
                    seconds[title].append(time.perf_counter() - start)
    click.echo(f"{bundle.name}, from an empty environment; seconds to the first image, medians of {repeats} runs")
    for title, (_, _, installed) in pythons.items():
        click.echo(f"{title:28} {installed / _MIB:6.0f} MiB installed  {statistics.median(seconds[title]):6.2f} s")


if __name__ == "__main__":
    main()
