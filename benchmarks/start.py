"""From a process's start to its first result: our runtime beside bare ONNX Runtime with the same graph.

    python -m benchmarks.start --python .venv-bare/bin/python --json start.json --chart docs/start.svg

Each is a process of its own, timed from outside, from its start to its exit after one reconstruction; they take turns,
in another order each time, and what is compared is the median. Both have their Python compiled before, as installed
packages have, and the result of both is the same. Bare is without checks: no SHA-256 of the files, no manifest, no
check of the input. It comes twice, as it is and without ONNX Runtime's reports to Microsoft, which ours turns off.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np

from benchmarks.chart import draw_bars
from benchmarks.timing import check_equal, medians, rounds

_OURS, _BARE, _SILENT = "edgevae", "bare ONNX Runtime", "bare, no reports"
_TOLERANCE = 1e-5
_BARE_PROGRAM = """
import sys, numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[3])
session = onnxruntime.InferenceSession(sys.argv[1] + "/reconstruct.onnx", options, providers=["CPUExecutionProvider"])
x, eps = (numpy.zeros((1, part.shape[1]), numpy.float32) for part in session.get_inputs())
image = session.run(["loc_img"], {"x": x, "eps": eps})[0]
"""
_PROGRAMS = {
    _OURS: """
import sys, numpy, edgevae
model = edgevae.load(sys.argv[1], provider="cpu", threads=int(sys.argv[3]))
image = model.reconstruct(numpy.zeros((1, *model.data_shape), numpy.float32))
""",
    _BARE: _BARE_PROGRAM,
    _SILENT: "import os; os.environ['ORT_DISABLE_TELEMETRY'] = '1'" + _BARE_PROGRAM,
    "import numpy": "import numpy\n",
}
_SAVE = "if sys.argv[2]: numpy.save(sys.argv[2], image)\n"


def environment(compiled: Path) -> dict[str, str]:
    """Return this process's environment, with Python's compiled modules kept in a folder."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPYCACHEPREFIX": str(compiled)}


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
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Where to write the numbers.")
@click.option("--chart", type=click.Path(path_type=Path), help="Where to draw them, .svg or .png.")
def main(bundle: Path, python: Path, threads: int, repeats: int, json_file: Path | None, chart: Path | None) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        variables = environment(Path(folder) / "compiled")

        def run(name: str, out: str = "") -> float:
            program = _PROGRAMS[name] + (_SAVE if "image" in _PROGRAMS[name] else "")
            command = [str(python.absolute()), "-c", program, str(bundle.absolute()), out, str(threads)]
            start = time.perf_counter()
            subprocess.run(command, cwd=folder, check=True, env=variables)  # noqa: S603 - our own program
            return time.perf_counter() - start

        images = {name: Path(folder) / f"{index}.npy" for index, name in enumerate((_OURS, _BARE, _SILENT))}
        for name, out in images.items():
            run(name, str(out))
        for name in (_OURS, _SILENT):
            check_equal(name, np.load(images[name]), np.load(images[_BARE]), _TOLERANCE)
        seconds: dict[str, list[float]] = {name: [] for name in _PROGRAMS}
        for repeat, names in enumerate(rounds(seconds, repeats + 1)):
            for name in names:
                took = run(name)
                if repeat > 0:
                    seconds[name].append(took)
    found = medians(seconds)
    click.echo(f"{bundle.name}, process start to exit after one reconstruction; medians of {repeats} runs")
    for name, median in found.items():
        click.echo(f"{name:18} {1e3 * median:6.0f} ms  {median / found[_BARE]:5.2f} of bare")
    if json_file is not None:
        json_file.write_text(json.dumps({"bundle": bundle.name, "seconds": found}, indent=2) + "\n", encoding="utf-8")
    if chart is not None:
        draw_bars(chart, [(bundle.name, found)], _OURS)


if __name__ == "__main__":
    main()
