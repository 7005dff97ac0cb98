"""The example service under load: requests a second, latency, memory, and whether the answers stay right.

    python -m benchmarks.service --bundle models/mnist-mlp --seconds 60

Needs `wrk`. One process serves, with one thread for the model; `wrk` sends one row again and again over 64 connections,
and meanwhile a checker sends rows and seeds of its own and compares the answers with direct calls, to the last bit.
"""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import click
import httpx
import numpy as np
from numpy.typing import NDArray

import edgevae

_SERVICE = Path(__file__).parent.parent / "examples" / "service.py"
_KIB_PER_MIB = 1024
_WARM_S = 10  # after which memory must not grow any more
_CHECK_EVERY_S = 0.25
_TYPE = {"Content-Type": "application/x-npy"}
_PORT = re.compile(r"http://127\.0\.0\.1:(\d+)")


def npy(rows: NDArray[np.float32]) -> bytes:
    """Return rows as a `.npy` file."""
    file = io.BytesIO()
    np.save(file, rows)
    return file.getvalue()


@contextlib.contextmanager
def serving(bundle: Path, *options: str) -> Iterator[tuple[str, int]]:
    """Run the service on a free port; give its address and its process id."""
    command = [sys.executable, str(_SERVICE), str(bundle), "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own program
        if process.stderr is None:
            raise click.ClickException("the service has no output")
        found = next((match for line in process.stderr if (match := _PORT.search(line))), None)
        if found is None:
            raise click.ClickException("the service did not start")
        try:
            yield found.group(), process.pid
        finally:
            process.send_signal(signal.SIGTERM)


def resident(pid: int) -> float:
    """Return a process's resident memory in MiB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / _KIB_PER_MIB


class Checker(threading.Thread):
    """Compares answers with direct calls while the service is under load.

    Args:
        model: The same model.
        url: The endpoint's address.
        x: Rows to send.
    """

    def __init__(self, model: edgevae.Model, url: str, x: NDArray[np.float32]) -> None:
        super().__init__()
        self.checked = self.wrong = 0
        self.done = threading.Event()
        self._model, self._url, self._x = model, url, x

    def run(self) -> None:
        """Ask until `done`."""
        with httpx.Client(timeout=60) as client:
            while not self.done.wait(_CHECK_EVERY_S):
                seed = self.checked
                rows = self._x[seed % 200 : seed % 200 + 1 + seed % 3]
                answer = client.post(self._url, params={"seed": seed}, content=npy(rows), headers=_TYPE)
                self.checked += 1
                self.wrong += not (answer.status_code == 200 and self._is_right(answer, rows, seed))

    def _is_right(self, answer: httpx.Response, rows: NDArray[np.float32], seed: int) -> bool:
        if self._url.endswith("reconstruct"):
            return np.array_equal(np.load(io.BytesIO(answer.content)), self._model.reconstruct(rows, seed=seed))
        found = [row["elbo"] for row in answer.json()["rows"]]
        return found == self._model.score(rows, seed=seed).elbo.tolist()


def measure(bundle: Path, endpoint: str, seconds: int, connections: int, *options: str) -> str:
    """Put the service under load; return a line of the table."""
    model = edgevae.load(bundle, provider="cpu", threads=1)
    x = np.load(bundle / "reference.npz")["x"]
    with tempfile.TemporaryDirectory() as name, serving(bundle, *options) as (url, pid):
        folder = Path(name)
        (folder / "body.npy").write_bytes(npy(x[:1]))
        (folder / "post.lua").write_text(
            f'local file = io.open("{folder}/body.npy", "rb"); wrk.body = file:read("*a"); file:close()\n'
            f'wrk.method = "POST"; wrk.headers["Content-Type"] = "{_TYPE["Content-Type"]}"\n'
        )
        checker = Checker(model, f"{url}/{endpoint}", x)
        checker.start()
        load = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", "post.lua"]
        start = resident(pid)
        with subprocess.Popen(  # noqa: S603 - wrk, and our own address
            [*load, f"{url}/{endpoint}?seed=0"], cwd=folder, stdout=subprocess.PIPE, text=True
        ) as process:
            time.sleep(min(_WARM_S, seconds / 2))
            warm = resident(pid)
            output = process.communicate()[0]
        end = resident(pid)
        checker.done.set()
        checker.join()
        health = httpx.get(f"{url}/health").json()
    latency = {part: re.findall(rf"{part}\s+([\d.]+\w+)", output)[0] for part in ("50%", "99%")}
    rate = float(re.findall(r"Requests/sec:\s+([\d.]+)", output)[0])
    errors = "".join(re.findall(r"(?:Socket errors|Non-2xx).*", output)) or "0"
    return (
        f"| {bundle.name} | /{endpoint} | {'no' if options else 'yes'} | {rate:.0f} | {latency['50%']} / "
        f"{latency['99%']} | {errors} | {health['calls'] / health['runs']:.1f} | {start:.0f}, {warm:.0f}, {end:.0f} | "
        f"{checker.checked}, {checker.wrong} wrong |"
    )


@click.command(context_settings={"show_default": True})
@click.option("--bundle", type=click.Path(exists=True, path_type=Path), default="models/mnist-mlp", help="The model.")
@click.option("--seconds", type=click.IntRange(min=2), default=60, help="Of load, for each line.")
@click.option("--connections", type=click.IntRange(min=1), default=64, help="Open at the same time.")
def main(bundle: Path, seconds: int, connections: int) -> None:
    """Print the table."""
    if shutil.which("wrk") is None:
        raise click.ClickException("this needs wrk; install it with your system's packages")
    click.echo("| model | request | batching | requests/s | p50 / p99 | errors | calls a run | MiB | answers checked |")
    click.echo("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for endpoint in ("reconstruct", "score"):
        for options in ((), ("--no-batching",)):
            click.echo(measure(bundle, endpoint, seconds, connections, *options))


if __name__ == "__main__":
    main()
