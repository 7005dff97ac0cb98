"""The benchmarks run, and refuse a peer that computes something else."""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import inference, start
from benchmarks.peers import BESIDE, OURS, STOCK, Peers, Way
from benchmarks.timing import check_equal, time_in_turn

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure in this process: starting one for each number of threads takes too long."""

    def measure(threads: int, architecture: str, *others: object) -> inference.Measured:
        return inference.measure(architecture, threads, *others)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(inference, "in_own_process", measure)


QUICK = ["--architectures", "mlp", "--batch-sizes", "2", "--threads", "1", "--repeats", "1", "--block-ms", "1"]


@pytest.mark.usefixtures("in_this_process")
def test_inference_prints_a_table_and_writes_numbers_and_a_chart(tmp_path: Path) -> None:
    json_file, chart = tmp_path / "inference.json", tmp_path / "inference.svg"
    arguments = [*QUICK, "--peers", f"torch eager,{STOCK},numpy", "--json", str(json_file), "--chart", str(chart)]
    done = CliRunner().invoke(inference.main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (part,) = json.loads(json_file.read_text(encoding="utf-8"))
    seconds = part["cells"][0]["seconds"]
    assert list(seconds) == [OURS, f"{OURS} int8", "torch eager", STOCK, "numpy"]
    ratios = " | ".join(f"{seconds[OURS] / value:.2f}" for name, value in seconds.items() if name != OURS)
    assert f"| mlp | 1 | 2 | {1e3 * seconds[OURS]:.3f} | {ratios} |" in done.output
    noise = part["noise_seconds"]
    assert f"noise of (4096, 50): {noise[OURS] / noise['torch.randn']:.2f} of torch.randn's time" in done.output
    assert "<svg" in chart.read_text(encoding="utf-8")


@pytest.mark.usefixtures("in_this_process")
def test_openvino_gives_the_same_numbers() -> None:
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed; pip install '.[bench]'")
    done = CliRunner().invoke(inference.main, [*QUICK, "--precisions", "", "--peers", "OpenVINO"])
    assert done.exit_code == 0, done.output
    assert "OpenVINO" in done.output


@pytest.mark.usefixtures("in_this_process")
def test_a_peer_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Peers.ways

    def wrong(peers: Peers, names: tuple[str, ...], batch: int) -> Iterator[tuple[str, Way]]:
        for name, way in right(peers, names, batch):
            noise = np.float32(0.1 if name == STOCK else 0)
            yield name, functools.partial(lambda way, noise, x, eps: way(x, eps + noise), way, noise)

    monkeypatch.setattr(Peers, "ways", wrong)
    done = CliRunner().invoke(inference.main, [*QUICK, "--precisions", "", "--peers", STOCK])
    assert done.exit_code == 1
    assert "stock export gives other numbers" in done.output


@pytest.mark.parametrize("got", [np.full((2, 3), np.nan), np.full((2, 3), 2e-5), np.zeros((3, 2))])
def test_other_numbers_are_refused(got: np.ndarray) -> None:
    with pytest.raises(click.ClickException, match="peer gives"):
        check_equal("peer", got.astype(np.float32), np.zeros((2, 3), np.float32), 1e-5)


def test_calls_take_turns() -> None:
    calls: list[str] = []
    seconds = time_in_turn({name: lambda name=name: calls.append(name) for name in "ab"}, 3, 1e-9)  # type: ignore[misc]  # a default
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}
    turns = "".join(calls[-12:])  # each time one call that is not counted, and one that is
    assert [sorted(turns[start : start + 4]) for start in (0, 4, 8)] == [["a", "a", "b", "b"]] * 3
    assert "aabb" in turns
    assert "bbaa" in turns, "the order is another one now and then"


@pytest.mark.slow  # exports twice
@pytest.mark.usefixtures("in_this_process")
def test_another_checkout_is_measured_beside_this_one() -> None:
    arguments = [*QUICK, "--precisions", "", "--peers", "session.run", "--beside", str(REPOSITORY)]
    done = CliRunner().invoke(inference.main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert f"| {OURS}, ms | {BESIDE} | session.run |" in done.output


@pytest.mark.parametrize("beside", [[], ["--beside", str(REPOSITORY)]], ids=["alone", "beside"])
def test_start_compares_whole_processes(beside: list[str], bundle: Path, tmp_path: Path) -> None:
    json_file = tmp_path / "start.json"
    arguments = ["--bundle", str(bundle), "--repeats", "1", "--json", str(json_file), *beside]
    done = CliRunner().invoke(start.main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert all(value > 0 for value in json.loads(json_file.read_text(encoding="utf-8"))["seconds"].values())
    assert "1.00 of bare" in done.output
    assert ("of other checkout" in done.output) == bool(beside)


def test_a_graph_that_gives_other_numbers_is_refused_by_start(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(start.PROGRAMS, start.BARE, start.PROGRAMS[start.BARE] + "image = image + 0.1\n")
    done = CliRunner().invoke(start.main, ["--bundle", str(bundle), "--repeats", "1"])
    assert done.exit_code == 1
    assert "edgevae gives other numbers" in done.output
