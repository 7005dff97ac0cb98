"""What callers hand in, and what they are told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from edgevae import InputError, Model
from edgevae.inputs import MANY, all_within

SHAPES = r"x must have shape \(batch, 64\) or \(batch, 1, 8, 8\) or \(batch, 8, 8\), got "


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros(64), SHAPES + r"\(64,\); add a batch axis with x\[None\]"),
        (np.zeros((1, 8, 8), np.uint8)[0], SHAPES + r"\(8, 8\); add a batch axis"),
        (np.zeros((2, 63)), SHAPES + r"\(2, 63\)"),
        (np.zeros((2, 8, 8, 1)), SHAPES + r"\(2, 8, 8, 1\)"),
        (np.float32(0), SHAPES + r"\(\)"),
        (np.zeros((2, 64), np.int64), "got dtype int64"),
        (np.zeros((2, 64), np.float16), "got dtype float16"),
        (np.zeros((2, 64), bool), "got dtype bool"),
        (np.zeros((2, 64), complex), "got dtype complex128"),
        (np.full((2, 64), "a"), "got dtype <U1"),
        (np.full((2, 64), None), "array of numbers"),
        ([[0.0] * 64, [0.0] * 63], "array of numbers"),
        (torch.zeros(2, 64, requires_grad=True), "array of numbers, got Tensor"),
        (torch.zeros(2, 64, dtype=torch.bfloat16), "array of numbers, got Tensor"),
        (np.ma.masked_array(np.zeros((2, 64)), mask=True), "must not be a masked array"),
        ([np.ma.masked_array(np.zeros(64), mask=True)], "x must not hold masked arrays"),
        (np.full((2, 64), 255.0), r"in \[0, 1\], got values from 255 to 255; divide pixels"),
        (np.full((2, 64), -0.1), r"in \[0, 1\], got values from -0.1"),
        (np.full((2, 64), np.inf), r"in \[0, 1\], got values from inf"),
        (np.full((2, 64), 1e300), r"in \[0, 1\], got values from inf"),
        (np.array([[0.0] * 64, [0.0] * 63 + [np.nan]]), "NaN in row 1"),
    ],
)
def test_observations_that_do_not_fit_are_refused(model: Model, x: Any, message: str) -> None:
    for call in (model.encode, model.reconstruct):
        with pytest.raises(InputError, match=message):
            call(x)


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (np.zeros(5), r"z must have shape \(batch, 5\), got \(5,\); add a batch axis with z\[None\]"),
        (np.zeros((2, 6)), r"z must have shape \(batch, 5\), got \(2, 6\)"),
        (np.zeros((2, 5), np.int32), "z must be float32 or float64, got dtype int32"),
        (np.array([[0.0] * 5, [np.nan] * 5]), "z must be finite, got NaN or infinity in row 1"),
        (np.full((2, 5), 1e300), "z must be finite"),
    ],
)
def test_latents_that_do_not_fit_are_refused(model: Model, z: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.decode(z)


def test_noise_must_fit_the_batch(model: Model) -> None:
    x = np.zeros((3, 64), np.float32)
    with pytest.raises(InputError, match=r"eps must have shape \(3, 5\), got \(2, 5\)"):
        model.reconstruct(x, eps=np.zeros((2, 5)))
    with pytest.raises(InputError, match="seed and eps were both given"):
        model.reconstruct(x, seed=0, eps=np.zeros((3, 5)))


def test_lists_of_numbers_are_arrays_too(model: Model) -> None:
    np.testing.assert_array_equal(model.encode([[0.5] * 64]).z_loc, model.encode(np.full((1, 64), 0.5)).z_loc)


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, 1e-45, np.nextafter(np.float32(1), np.float32(0))])
def test_the_ends_of_the_unit_interval_belong_to_it(model: Model, value: float) -> None:
    assert model.observations(np.full((2, 64), value, np.float32))[0].shape == (2, 64)


@pytest.mark.parametrize("value", [-1e-45, np.nextafter(np.float32(1), np.float32(2)), -np.inf, np.nan, -np.nan])
def test_the_least_step_out_of_the_unit_interval_is_refused(model: Model, value: float) -> None:
    x = np.zeros((2, 64), np.float32)
    x[1, 63] = value
    with pytest.raises(InputError, match=r"x must (be in \[0, 1\]|not hold NaN, got NaN in row 1)"):
        model.observations(x)


def test_checked_observations_are_what_the_graphs_take(model: Model) -> None:
    x, y = model.observations(np.full((3, 1, 8, 8), 255, np.uint8))
    assert x.dtype == np.float32
    assert (x.shape, x.max()) == ((3, 64), 1)
    assert y is None
    whole = np.zeros((3, 64), np.float32)
    assert np.shares_memory(model.observations(whole)[0], whole)


@pytest.mark.parametrize("rows", [7, 3000])
def test_a_result_may_be_written_over_what_it_is_made_of(model: Model, rows: int) -> None:
    random = np.random.default_rng(0)
    memory = random.random((rows + 1, 64), np.float32)
    expected = model.reconstruct(memory[:-1].copy(), seed=1)
    np.testing.assert_array_equal(model.reconstruct(memory[:-1], seed=1, out=memory[1:]), expected)
    np.testing.assert_array_equal(memory[1:], expected)
    memory = random.standard_normal((rows, 69)).astype(np.float32).reshape(-1)
    z, out = memory[: rows * 5].reshape(rows, 5), memory[rows * 3 : rows * 67].reshape(rows, 64)
    expected = model.decode(z.copy())
    np.testing.assert_array_equal(model.decode(z, out=out), expected)


def test_what_is_not_aligned_is_copied_and_no_place_for_a_result(model: Model) -> None:
    memory = np.zeros(3 * 64 * 4 + 1, np.uint8)[1:].view(np.float32).reshape(3, 64)
    assert not memory.flags.aligned
    assert model.observations(memory)[0].flags.aligned
    with pytest.raises(InputError, match=r"out must be float32 .* aligned and writable, got .*, not aligned"):
        model.reconstruct(np.zeros((3, 64)), out=memory)


def test_a_masked_array_is_no_place_for_a_result(model: Model) -> None:
    out = np.ma.masked_array(np.zeros((2, 64), np.float32), mask=True, hard_mask=True)
    with pytest.raises(InputError, match=r"out must not be a masked array; give the array under it, out\.data"):
        model.decode(np.zeros((2, 5)), out=out)


@pytest.mark.parametrize("count", [2**62, 2**64, 2**200])
def test_counts_that_no_machine_has_room_for_are_refused(model: Model, count: int) -> None:
    x = np.zeros((2, 64), np.float32)
    calls: dict[str, Callable[[], object]] = {
        "n": lambda: model.generate(count, seed=0),
        "num_samples": lambda: model.posterior_predictive(x, count, seed=0),
        "steps": lambda: model.interpolate(x, x, count),
        "batch_sizes": lambda: model.warm_up([count]),
    }
    for name, call in calls.items():
        with pytest.raises(InputError, match=f"{name} must be at most"):
            call()
    assert len(list(model.reconstruct_batches(x, count))) == 1


def test_batch_sizes_must_be_a_list(model: Model) -> None:
    with pytest.raises(InputError, match="batch_sizes must be a list of integers, got int"):
        model.warm_up(5)  # type: ignore[arg-type]  # that is the point


ODD_BITS = [0x80000000, 0x7FC00000, 0xFFC00000, 0x7F800000, 0xFF800000, 0x3F800000]
BITS = st.sampled_from(ODD_BITS) | st.integers(0, 2**32 - 1)


@given(bits=st.lists(BITS, min_size=1, max_size=40), low=st.sampled_from([0.0, -1.0]))
@example(bits=[0x80000000, 0x40A00000], low=0.0)  # -0 and 5: as integers, -0 is the larger one
def test_all_numbers_are_within_their_range_whatever_their_bits(bits: list[int], low: float) -> None:
    values = np.array(bits, np.uint32).view(np.float32)
    expected = bool(((values >= low) & (values <= 1)).all())
    assert all_within(values, low, 1.0) == expected
    assert all_within(np.resize(values, MANY), low, 1.0) == expected
