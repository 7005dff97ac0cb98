"""Time from the start of a process to its first result: our runtime and bare ONNX Runtime with the same graph.

    python -m benchmarks.start --python .venv-bare/bin/python --json start.json --chart docs/start.svg
    python -m benchmarks.start --python .venv-bare/bin/python --beside ../before    # before and after

Each way is a process of its own, timed from its start to its exit after one reconstruction. They take turns, each time
in another order, and the medians are compared. Their Python code is compiled before, as that of installed packages is,
and their results are equal. Bare means without checks: no SHA-256 of the files, no manifest, no check of the input. It
is measured twice, with and without ONNX Runtime's reports to Microsoft, which our runtime turns off.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np

from benchmarks.timing import check_equal, draw_bars, medians, rounds

OURS, BARE, SILENT, BESIDE = "edgevae", "bare ONNX Runtime", "bare, no reports", "other checkout"
_TOLERANCE = 1e-5
_REPOSITORY = Path(__file__).parent.parent
_BARE_PROGRAM = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[3])
session = onnxruntime.InferenceSession(sys.argv[1] + "/reconstruct.onnx", options, providers=["CPUExecutionProvider"])
x, eps = (numpy.zeros((1, part.shape[1]), numpy.float32) for part in session.get_inputs())
image = session.run(["loc_img"], {"x": x, "eps": eps})[0]
"""
_OUR_PROGRAM = """
import sys, numpy, edgevae
model = edgevae.load(sys.argv[1], provider="cpu", threads=int(sys.argv[3]))
image = model.reconstruct(numpy.zeros((1, *model.data_shape), numpy.float32))
"""
PROGRAMS = {
    OURS: _OUR_PROGRAM,
    BARE: _BARE_PROGRAM,
    SILENT: "import os; os.environ['ORT_DISABLE_TELEMETRY'] = '1'" + _BARE_PROGRAM,
    "import numpy": "import numpy\n",
}
_SAVE = "if sys.argv[2]: numpy.save(sys.argv[2], image)\n"


def copied(checkout: Path, name: str, folder: Path) -> str:
    """Copy a checkout's runtime to `folder/name`; return the program that uses the copy."""
    shutil.copytree(checkout / "runtime", folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return _OUR_PROGRAM.replace("edgevae", f"{name} as edgevae", 1)


def environment(compiled: Path) -> dict[str, str]:
    """Return this process's environment, with Python's compiled modules kept in a folder."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": str(compiled)}


def time_starts(bundle: Path, python: Path, threads: int, repeats: int, beside: Path | None) -> dict[str, list[float]]:
    """Return the seconds of `repeats` processes for each way, by name; the arguments are the options of `main`."""
    with tempfile.TemporaryDirectory() as folder:
        variables = environment(Path(folder) / "compiled")
        programs = dict(PROGRAMS)
        if beside is not None:
            programs[OURS] = copied(_REPOSITORY, "this_runtime", Path(folder))
            programs[BESIDE] = copied(beside, "other_runtime", Path(folder))

        def run(name: str, out: str = "") -> float:
            program = programs[name] + (_SAVE if "image" in programs[name] else "")
            command = [str(python.absolute()), "-c", program, str(bundle.absolute()), out, str(threads)]
            start = time.perf_counter()
            subprocess.run(command, cwd=folder, check=True, env=variables)  # noqa: S603 - our own program
            return time.perf_counter() - start

        images = {name: Path(folder) / f"{name}.npy" for name, program in programs.items() if "image" in program}
        for name, out in images.items():
            run(name, str(out))
        for name, out in images.items():
            check_equal(name, np.load(out), np.load(images[BARE]), _TOLERANCE)
        seconds: dict[str, list[float]] = {name: [] for name in programs}
        for repeat, names in enumerate(rounds(seconds, repeats + 1)):
            for name in names:
                took = run(name)
                if repeat > 0:
                    seconds[name].append(took)
    return seconds


@click.command(context_settings={"show_default": True})
@click.option("--bundle", type=click.Path(exists=True, path_type=Path), default="models/mnist-mlp", help="The model.")
@click.option(
    "--python",
    type=click.Path(exists=True, path_type=Path),
    default=sys.executable,
    help="A Python with the runtime installed, as a device has it; without PyTorch, whose packages others look for.",
)
@click.option("--threads", type=click.IntRange(min=1), default=1, help="Threads in an operator.")
@click.option("--repeats", type=click.IntRange(min=1), default=15, help="Processes of each, after one to warm up.")
@click.option(
    "--beside",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Another checkout of this project. Its runtime and that of this checkout are copied, and both are measured.",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Where to write the numbers.")
@click.option("--chart", type=click.Path(path_type=Path), help="Where to draw them, .svg or .png.")
def main(
    bundle: Path,
    python: Path,
    threads: int,
    repeats: int,
    beside: Path | None,
    json_file: Path | None,
    chart: Path | None,
) -> None:
    """Print the table."""
    found = medians(time_starts(bundle, python, threads, repeats, beside))
    click.echo(f"{bundle.name}, process start to exit after one reconstruction; medians of {repeats} runs")
    for name, median in found.items():
        click.echo(f"{name:18} {1e3 * median:6.0f} ms  {median / found[BARE]:5.2f} of bare")
    if beside is not None:
        click.echo(f"{OURS}: {found[OURS] / found[BESIDE]:.2f} of {BESIDE}")
    if json_file is not None:
        json_file.write_text(json.dumps({"bundle": bundle.name, "seconds": found}, indent=2) + "\n", encoding="utf-8")
    if chart is not None:
        draw_bars(chart, [(bundle.name, found)], OURS)


if __name__ == "__main__":
    main()
