"""More observations than fit into memory."""

from __future__ import annotations

import functools
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from edgevae import InputError, Model
from edgevae.streaming import paired, row_batches

ROWS = 2500


@pytest.fixture(scope="module")
def x() -> NDArray[np.float32]:
    return np.random.default_rng(0).random((ROWS, 64), np.float32)


def joined(batches: Iterator[NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.concatenate(list(batches))


def test_without_noise_it_is_reconstruct(model: Model, x: NDArray[np.float32]) -> None:
    np.testing.assert_allclose(joined(model.reconstruct_batches(x, 700)), model.reconstruct(x), atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, 1000, 1024, 5000])
def test_the_result_does_not_depend_on_how_the_stream_is_cut(
    model: Model, x: NDArray[np.float32], batch_size: int
) -> None:
    expected = joined(model.reconstruct_batches(x, 300, seed=5))
    found = list(model.reconstruct_batches(x, batch_size, seed=5))
    assert {len(batch) for batch in found[:-1]} <= {batch_size}
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-6)
    parts = (x[start : start + size] for start, size in ((0, 13), (13, 0), (13, 2000), (2013, 487)))
    np.testing.assert_allclose(joined(model.reconstruct_batches(parts, batch_size, seed=5)), expected, atol=1e-6)


def test_whole_blocks_are_what_reconstruct_gives_from_the_same_seed(model: Model, x: NDArray[np.float32]) -> None:
    whole = x[:2048]
    found = joined(model.reconstruct_batches(whole, 100, seed=5))
    np.testing.assert_allclose(found, model.reconstruct(whole, seed=5), atol=1e-6)


def test_memory_stays_flat_from_one_mapped_file_to_another(model: Model, tmp_path: Path) -> None:
    rows = 200_000
    source = open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.uint8, shape=(rows, 64))
    target = open_memmap(tmp_path / "loc_img.npy", mode="w+", dtype=np.float32, shape=(rows, 64))
    source[:] = np.arange(64, dtype=np.uint8)
    tracemalloc.start()
    start = 0
    for batch in model.reconstruct_batches(source, 1000, seed=0):
        target[start : start + len(batch)] = batch
        start += len(batch)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert start == rows
    assert peak < 8e6  # the result alone is 51 MB
    np.testing.assert_allclose(
        target[150_000], joined(model.reconstruct_batches(source[:150_001], seed=0))[-1], atol=1e-6
    )


def test_stream_parts_that_do_not_fit_are_refused_in_their_turn(model: Model, x: NDArray[np.float32]) -> None:
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        model.reconstruct_batches(x, 0)
    bad = x.copy()
    bad[1500, 3] = np.nan
    batches = model.reconstruct_batches(bad, 1000)
    assert len(next(batches)) == 1000
    with pytest.raises(InputError, match="x must not hold NaN"):
        next(batches)
    with pytest.raises(InputError, match="y must not be given"):
        next(model.reconstruct_batches(x, y=np.zeros(ROWS, np.int64)))


def as_it_is(rows: NDArray[Any]) -> NDArray[Any]:
    return rows


def test_labels_must_be_as_many_as_rows(x: NDArray[np.float32]) -> None:
    batches = functools.partial(row_batches, batch_size=10, check=as_it_is)
    for count, word in ((10, "fewer"), (30, "more")):
        with pytest.raises(InputError, match=f"the same number of rows, and y has {word}"):
            list(paired(batches("x", x[:20]), batches("y", np.zeros(count, np.int64))))
    pairs = list(paired(batches("x", [x[:7], x[7:20]]), batches("y", np.arange(20))))
    assert [label.tolist() for _, label in pairs] == [list(range(10)), list(range(10, 20))]


def test_parts_of_other_dtypes_and_shapes_mean_what_they_mean_alone(model: Model, x: NDArray[np.float32]) -> None:
    ones = np.ones((3, 8, 8), np.uint8)  # 1/255 each, also beside floats of which 1 is the largest
    parts: list[NDArray[Any]] = [x[:4], ones, x[4:9].astype(">f8")]
    expected = np.concatenate([model.reconstruct(part) for part in parts])
    np.testing.assert_allclose(joined(model.reconstruct_batches(parts, 5)), expected, atol=1e-6)


def test_a_stream_may_reuse_its_memory(model: Model, x: NDArray[np.float32]) -> None:
    def refilled() -> Iterator[NDArray[np.float32]]:
        buffer = np.empty((3, 64), np.float32)
        for start in range(0, 12, 3):
            buffer[:] = x[start : start + 3]
            yield buffer

    np.testing.assert_allclose(joined(model.reconstruct_batches(refilled(), 5)), model.reconstruct(x[:12]), atol=1e-6)


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (5, "x must be an array or an iterable of arrays, got int"),
        (None, "x must be an array or an iterable of arrays, got NoneType"),
        (np.zeros(()), "x must be an array with a batch axis or an iterable of such, got a single number"),
        ([0.5], "x must be an array or an iterable of arrays, got single numbers"),
        ([[]], r"x must have shape \(batch, 64\).* got \(0,\)"),
        ([np.zeros((2, 64)), np.zeros((2, 63))], r"x must have shape .* got \(2, 63\)"),
        ([np.ma.masked_array(np.zeros((2, 64)), mask=True)], "x must not be a masked array"),
        (np.ma.masked_array(np.zeros((2, 64)), mask=True), "x must not be a masked array"),
    ],
)
def test_an_invalid_stream_is_refused(model: Model, stream: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(model.reconstruct_batches(stream))


@pytest.mark.parametrize("batch_size", [np.uint8(100), np.int8(100), np.int64(100)])
def test_a_small_integer_type_loses_no_rows(model: Model, x: NDArray[np.float32], batch_size: Any) -> None:
    assert [len(batch) for batch in model.reconstruct_batches(x[:250], batch_size)] == [100, 100, 50]


def test_an_array_without_a_batch_axis_is_named_as_it_is(model: Model) -> None:
    with pytest.raises(InputError, match=r"got \(64,\); add a batch axis with x\[None\]"):
        list(model.reconstruct_batches(np.zeros(64, np.float32), 10))
