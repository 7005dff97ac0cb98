"""Batches of more rows than a graph runs at once: parts, each written into the result in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from runtime import BundleError, EdgeVAEError, Model, load
from runtime._graph import Graph
from tests.runtime.hostile.case import graph
from tests.runtime.hostile.operators import through
from train import Dataset

AT_ONCE, ROWS = 256, 700
"""Rows in one run with one thread; rows of three such runs, the last of fewer."""


@pytest.fixture
def single(bundle: Path) -> Model:
    return load(bundle, provider="cpu", threads=1)


def _tripled(digits: Dataset) -> Any:
    return np.tile(digits.test.numpy(), (3, 1, 1, 1))[:ROWS]


def test_parts_are_written_in_place_with_the_numbers_that_each_has_alone(
    single: Model, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = _tripled(digits)
    parts = [single.encode(x[start : start + AT_ONCE]) for start in range(0, ROWS, AT_ONCE)]
    images = [single.decode(part.z_loc) for part in parts]

    def copied(*_args: object) -> None:
        raise AssertionError

    monkeypatch.setattr(Graph, "_run", copied)
    whole = single.encode(x)
    np.testing.assert_array_equal(whole.z_loc, np.concatenate([part.z_loc for part in parts]))
    np.testing.assert_array_equal(whole.z_scale, np.concatenate([part.z_scale for part in parts]))
    np.testing.assert_array_equal(single.decode(whole.z_loc), np.concatenate(images))
    out = np.full((ROWS, 64), np.nan, np.float32)
    assert single.decode(whole.z_loc, out=out) is out
    np.testing.assert_array_equal(out, np.concatenate(images))


def test_parts_from_another_provider_are_copied_into_the_same_result(
    single: Model, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = _tripled(digits)
    expected = single.encode(x)
    encoder = single._graphs["encoder"]

    def bound() -> None:
        raise AssertionError

    monkeypatch.setattr(encoder, "provider", "cuda")
    monkeypatch.setattr(encoder._session, "io_binding", bound)
    copied = single.encode(x)
    np.testing.assert_array_equal(copied.z_loc, expected.z_loc)
    np.testing.assert_array_equal(copied.z_scale, expected.z_scale)


@pytest.mark.parametrize("rows", [AT_ONCE, ROWS])
def test_a_result_of_another_shape_is_refused_and_written_nowhere(bundle: Path, tmp_path: Path, rows: int) -> None:
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
    single.decode(z[:1])
    session = single._graphs["decoder"]._session

    def run_with_iobinding(_binding: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(session, "run_with_iobinding", run_with_iobinding)
    with pytest.raises(EdgeVAEError, match=r"^cpu failed in decoder\.onnx: out of memory$"):
        single.decode(z)
