"""Batches of more rows than a graph runs at once: parts, each written into the result in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from runtime import BundleError, EdgeVAEError, Model, Reference, load
from runtime._graph import _MAX_ROWS_A_THREAD as AT_ONCE
from runtime._graph import Graph
from tests.conftest import REPOSITORY
from tests.runtime.hostile.case import graph
from tests.runtime.hostile.operators import through

ROWS = 2 * AT_ONCE + 188
"""Of three runs with one thread, the last of fewer rows."""


@pytest.fixture
def single(bundle: Path) -> Model:
    return load(bundle, provider="cpu", threads=1)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows in each run that made arrays of its own, as they come."""
    rows: list[int] = []
    run = Graph._run

    def counting(self: Graph, inputs: Any, gives: Any) -> Any:
        rows.append(len(inputs[self.inputs[0]]))
        return run(self, inputs, gives)

    monkeypatch.setattr(Graph, "_run", counting)
    return rows


@pytest.mark.parametrize("name", ["mnist-mlp", "mnist-conditional", "mnist-hierarchical", "mnist-mixture"])
def test_every_output_of_every_graph_is_written_in_place_with_the_numbers_of_its_parts(
    name: str, runs: list[int]
) -> None:
    model = load(REPOSITORY / "models" / name, provider="cpu", threads=1)
    reference = Reference.decode(model._bundle.read(model.manifest.reference))
    for graph_name in model.manifest.graphs:
        run = model._graphs[graph_name]
        inputs = {name: np.resize(reference[name], (ROWS, *reference[name].shape[1:])) for name in run.inputs}
        parts = [
            run({name: array[start : start + AT_ONCE] for name, array in inputs.items()})
            for start in range(0, ROWS, AT_ONCE)
        ]
        runs.clear()
        whole = run(inputs)
        assert runs == []
        assert list(whole) == run.outputs
        for output, values in whole.items():
            np.testing.assert_array_equal(values, np.concatenate([part[output] for part in parts]))


def test_a_result_in_the_midst_of_an_array_leaves_the_rest_of_it_alone(single: Model, runs: list[int]) -> None:
    z = np.random.RandomState(0).standard_normal((ROWS, 5))
    expected = single.decode(z)
    held = np.full((ROWS + 2, 64), 7, np.float32)
    out = held[1:-1]
    assert single.decode(z, out=out) is out
    np.testing.assert_array_equal(out, expected)
    assert (held[[0, -1]] == 7).all()
    assert runs == []


def test_what_another_provider_makes_is_copied(single: Model, monkeypatch: pytest.MonkeyPatch, runs: list[int]) -> None:
    x = np.random.RandomState(0).uniform(size=(ROWS, 64))
    expected = single.encode(x)
    monkeypatch.setattr(single._graphs["encoder"], "provider", "cuda")
    copied = single.encode(x)
    np.testing.assert_array_equal(copied.z_loc, expected.z_loc)
    np.testing.assert_array_equal(copied.z_scale, expected.z_scale)
    assert runs == [AT_ONCE, AT_ONCE, ROWS - 2 * AT_ONCE]


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
