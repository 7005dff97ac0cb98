"""More observations than fit into memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from runtime import InputError, Model
from runtime._streaming import _pairs

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


def test_what_does_not_fit_is_refused_when_its_turn_comes(model: Model, x: NDArray[np.float32]) -> None:
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


def test_labels_must_be_as_many_as_rows(x: NDArray[np.float32]) -> None:
    for count, word in ((10, "fewer"), (30, "more")):
        with pytest.raises(InputError, match=f"as many rows, and y has {word}"):
            list(_pairs(x[:20], np.zeros(count, np.int64), 10))
    pairs = list(_pairs(iter([x[:7], x[7:20]]), np.arange(20), 10))
    assert [label.tolist() for _, label in pairs] == [list(range(10)), list(range(10, 20))]
