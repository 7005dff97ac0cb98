"""Batches of more rows than a graph runs at once: parts, side by side, each written into the result in place."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper

from edgevae import BundleError, EdgeVAEError, Model, Reference, load
from edgevae.graph import _MAX_ROWS_A_THREAD as AT_ONCE
from edgevae.graph import Graph
from tests.conftest import REPOSITORY
from tests.runtime.hostile.case import graph
from tests.runtime.hostile.operators import through

ROWS = 2 * AT_ONCE + 188
"""Of three runs with one thread, the last of fewer rows."""


@pytest.fixture
def single(bundle: Path) -> Model:
    return load(bundle, provider="cpu", threads=1)


def rows_of_each_call(method: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    rows: list[int] = []
    called = getattr(Graph, method)

    def counting(self: Graph, inputs: Any, outputs: Any) -> Any:
        rows.append(len(inputs[self.inputs[0]]))
        return called(self, inputs, outputs)

    monkeypatch.setattr(Graph, method, counting)
    return rows


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows in each run that made arrays of its own, as they come."""
    return rows_of_each_call("_run", monkeypatch)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each part that was written in place, as they come."""
    return rows_of_each_call("_write_in_place", monkeypatch)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", ["mnist-mlp", "mnist-conditional", "mnist-hierarchical", "mnist-mixture"])
def test_every_output_of_every_graph_is_written_in_place_with_the_numbers_of_its_parts(
    name: str, threads: int, runs: list[int]
) -> None:
    model, one = (load(REPOSITORY / "models" / name, provider="cpu", threads=count) for count in (threads, 1))
    reference = Reference.decode(model._bundle.read(model.manifest.reference))
    rows = ROWS if threads == 1 else AT_ONCE * threads + 1
    for graph_name in model.manifest.graphs:
        run = model._graphs[graph_name]
        inputs = {name: np.resize(reference[name], (rows, *reference[name].shape[1:])) for name in run.inputs}
        parts = [
            one._graphs[graph_name]({name: array[start : start + AT_ONCE] for name, array in inputs.items()})
            for start in range(0, rows, AT_ONCE)
        ]
        runs.clear()
        whole = run(inputs)
        assert runs == []
        assert list(whole) == run.outputs
        for output, values in whole.items():
            np.testing.assert_array_equal(values, np.concatenate([part[output] for part in parts]))


@pytest.mark.parametrize(
    ("threads", "rows", "expected"),
    [
        (1, AT_ONCE, []),
        (1, AT_ONCE + 1, [256, 1]),
        (1, ROWS, [256, 256, 188]),
        (2, 2 * AT_ONCE, []),
        (2, 2 * AT_ONCE + 1, [129, 129, 129, 126]),
        (2, 4 * AT_ONCE, [256] * 4),
        (3, 3 * AT_ONCE, []),
        (3, 4 * AT_ONCE, [171, 171, 171, 171, 171, 169]),
    ],
)
def test_parts_are_even_and_as_many_for_each_thread(
    bundle: Path, parts: list[int], threads: int, rows: int, expected: list[int]
) -> None:
    load(bundle, provider="cpu", threads=threads).decode(np.zeros((rows, 5), np.float32))
    assert sorted(parts, reverse=True) == expected


def test_rows_that_are_too_few_for_each_of_many_threads_run_one_part_after_another(
    bundle: Path, parts: list[int]
) -> None:
    load(bundle, provider="cpu", threads=64).decode(np.zeros((16 * AT_ONCE + 1, 5), np.float32))
    assert parts == [4096, 1]


def test_a_model_whose_folder_has_gone_still_takes_many_rows(bundle: Path, tmp_path: Path) -> None:
    z = np.random.RandomState(0).standard_normal((2 * AT_ONCE + 1, 5)).astype(np.float32)
    expected = load(bundle, provider="cpu", threads=2).decode(z)
    model = load(shutil.copytree(bundle, tmp_path / "gone"), provider="cpu", threads=2)
    model.warm_up()
    shutil.rmtree(tmp_path / "gone")
    for _ in range(2):
        np.testing.assert_allclose(model.decode(z), expected, atol=1e-6)
    assert model._graphs._lanes._num_threads == 0


def test_parts_run_side_by_side_with_one_thread_each(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(bundle, provider="cpu", threads=2)
    write, together, of_one = Graph._write_in_place, threading.Barrier(2), set()

    def meeting(self: Graph, inputs: Any, outputs: Any) -> None:
        of_one.add(self._session.get_session_options().intra_op_num_threads)
        together.wait(30)
        write(self, inputs, outputs)

    monkeypatch.setattr(Graph, "_write_in_place", meeting)
    model.decode(np.zeros((2 * AT_ONCE + 2, 5), np.float32))
    assert of_one == {1}


def test_few_rows_start_no_thread_and_make_no_other_session(bundle: Path) -> None:
    model = load(bundle, provider="cpu", threads=2)
    model.warm_up([1, AT_ONCE, 2 * AT_ONCE])
    assert model._graphs._lanes._num_threads == 0
    assert all(graph._single is None for graph in model._graphs.values())


def test_with_a_callers_own_session_options_parts_run_in_that_session(bundle: Path, parts: list[int]) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    model = load(bundle, provider="cpu", session_options=options)
    model.decode(np.zeros((10_000, 5), np.float32))
    assert sum(parts) == 10_000
    assert model._graphs["decoder"]._single is None
    assert model._graphs._lanes._num_threads == 0


_LATE = """
import atexit, sys
import numpy as np
import edgevae

model = edgevae.load(sys.argv[1], provider="cpu", threads=2)
z = np.zeros((1000, 5), np.float32)
if sys.argv[2] == "begun":
    model.decode(z)
atexit.register(lambda: print(model.decode(z).shape))
"""


@pytest.mark.parametrize("when", ["begun", "not begun"])
def test_many_rows_at_the_end_of_the_interpreter_have_the_callers_thread(bundle: Path, when: str) -> None:
    command = [sys.executable, "-c", _LATE, str(bundle), when]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("(1000, 64)\n", "")


@pytest.mark.parametrize("end", ["closed", "forgotten"])
def test_the_threads_of_a_model_end_with_it(bundle: Path, end: str) -> None:
    before = set(threading.enumerate())
    model = load(bundle, provider="cpu", threads=2)
    model.decode(np.zeros((2 * AT_ONCE + 1, 5), np.float32))
    (started,) = set(threading.enumerate()) - before
    if end == "closed":
        model.close()
    else:
        del model
    started.join(30)
    assert not started.is_alive()


def test_a_result_in_the_midst_of_an_array_leaves_the_rest_of_it_alone(single: Model, runs: list[int]) -> None:
    z = np.random.RandomState(0).standard_normal((ROWS, 5))
    expected = single.decode(z)
    held = np.full((ROWS + 2, 64), 7, np.float32)
    out = held[1:-1]
    assert single.decode(z, out=out) is out
    np.testing.assert_array_equal(out, expected)
    assert (held[[0, -1]] == 7).all()
    assert runs == []


@pytest.mark.parametrize("threads", [1, 2])
def test_what_another_provider_makes_is_copied_from_one_run_after_another(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, threads: int, runs: list[int]
) -> None:
    model = load(bundle, provider="cpu", threads=threads)
    x = np.random.RandomState(0).uniform(size=(ROWS, 64))
    expected = model.encode(x)
    monkeypatch.setattr(model._graphs["encoder"], "provider", "cuda")
    copied = model.encode(x)
    np.testing.assert_allclose(copied.z_loc, expected.z_loc, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(copied.z_scale, expected.z_scale, rtol=1e-5, atol=1e-6)
    assert runs == ([AT_ONCE, AT_ONCE, ROWS - 2 * AT_ONCE] if threads == 1 else [2 * AT_ONCE, ROWS - 2 * AT_ONCE])


@pytest.mark.parametrize("rows", [AT_ONCE, ROWS])
def test_a_result_of_another_shape_is_refused_before_any_of_it_is_written(
    bundle: Path, tmp_path: Path, rows: int
) -> None:
    twice = through(helper.make_node("Concat", ["given", "given"], ["made"], axis=0))
    path = graph("twice", twice, "", "decoder.onnx").build(bundle, tmp_path)
    model = load(path, provider="cpu", threads=1)
    out = np.full((rows + 2 * AT_ONCE, 64), 7, np.float32)
    message = r"decoder\.onnx does not fit its manifest: loc_img must have shape \(256, 64\), got \(512, 64\)"
    with pytest.raises(BundleError, match=message):
        model.decode(np.zeros((rows, 5), np.float32), out=out[:rows])
    assert (out == 7).all()


def test_what_fails_in_one_part_is_told_with_provider_and_file(single: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    z = np.zeros((ROWS, 5), np.float32)
    expected, decoder = single.decode(z), single._graphs["decoder"]

    def out_of_memory(*_args: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(decoder._session, "run_with_iobinding", out_of_memory)
    np.testing.assert_array_equal(single.decode(z), expected)
    monkeypatch.setattr(decoder, "_run_session", out_of_memory)
    with pytest.raises(EdgeVAEError, match=r"^cpu failed in decoder\.onnx: out of memory$"):
        single.decode(z)
