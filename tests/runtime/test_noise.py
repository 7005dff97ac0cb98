"""The noise stream beside PyTorch's CPU generator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgevae import InputError, Noise

SEEDS = (0, 1, 42, 2**31, 2**63)


def torch_noise(seed: int, *shape: int) -> np.ndarray:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).numpy()


@pytest.mark.parametrize("seed", SEEDS)
def test_every_size_up_to_1000_matches_torch(seed: int) -> None:
    for size in range(1, 1001):
        np.testing.assert_allclose(
            Noise(seed).standard_normal((size,)), torch_noise(seed, size), rtol=0, atol=1e-6, err_msg=f"size {size}"
        )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [4_096, 65_537, 999_999, 1_000_000])
def test_large_sizes_match_torch(seed: int, size: int) -> None:
    np.testing.assert_allclose(Noise(seed).standard_normal((size,)), torch_noise(seed, size), rtol=0, atol=1e-6)


@given(
    seed=st.integers(0, 2**64 - 1),
    shapes=st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=3), min_size=1, max_size=6),
)
def test_consecutive_draws_match_consecutive_calls_of_torch(seed: int, shapes: list[list[int]]) -> None:
    noise, generator = Noise(seed), torch.Generator().manual_seed(seed)
    for shape in shapes:
        expected = torch.randn(shape, generator=generator).numpy()
        drawn = noise.standard_normal(shape)
        assert drawn.shape == expected.shape
        assert drawn.dtype == np.float32
        np.testing.assert_allclose(drawn, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [1, 7, 16, 1000])
def test_uniform_values_match_torch_and_normal_ones_follow_them(size: int) -> None:
    noise, generator = Noise(3), torch.Generator().manual_seed(3)
    for _ in range(2):
        np.testing.assert_array_equal(noise.uniform(size), torch.rand(size, generator=generator).numpy())
        drawn, expected = noise.standard_normal((5,)), torch.randn(5, generator=generator).numpy()
        np.testing.assert_allclose(drawn, expected, rtol=0, atol=1e-6)


def test_global_generators_are_not_touched() -> None:
    np.random.seed(5)
    expected = np.random.random()
    np.random.seed(5)
    Noise(3).standard_normal((100,))
    assert np.random.random() == expected


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, "0", None, True])
def test_an_invalid_seed_is_refused(seed: object) -> None:
    with pytest.raises(InputError, match=r"seed must be|a seed is needed"):
        Noise(seed)  # type: ignore[arg-type]  # that is the point


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (5, "shape must be a tuple or a list of integers, got int"),
        ("12", "shape must be a tuple or a list of integers, got str"),
        ((-1, -20), "shape must not be negative, got -1"),
        ((2.0,), "shape must be an integer, got float"),
        ((2**62,), "shape must be at most"),
        ((2**39, 2**39), "shape must be of at most"),
        ((0, 2**40, 2**40), "shape must be of at most"),
    ],
)
def test_an_invalid_shape_is_refused_and_draws_nothing(shape: Any, message: str) -> None:
    noise = Noise(0)
    with pytest.raises(InputError, match=message):
        noise.standard_normal(shape)
    np.testing.assert_array_equal(noise.standard_normal((20,)), Noise(0).standard_normal((20,)))


@pytest.mark.parametrize("size", [-1, 2**62, 1.0, True, (3,)])
def test_an_invalid_number_of_uniform_values_is_refused(size: Any) -> None:
    with pytest.raises(InputError, match="size must"):
        Noise(0).uniform(size)
