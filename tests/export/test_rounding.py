"""Weights rounded for data: the products change less than with each weight's nearest integer."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import helper

from edgevae import Reference
from edgevae.export.int8 import to_int8
from edgevae.export.rounding import rounded
from tests.export.graphs import SPEC, graph, run, weights

LARGEST = 64


def correlated(num_rows: int, num_inputs: int, *, seed: int) -> NDArray[np.float32]:
    """Rows that a hidden layer could hold: from 0 on, and most of what they show in a few directions."""
    directions = np.random.default_rng(5).standard_normal((8, num_inputs))
    factors = np.random.default_rng(seed).standard_normal((num_rows, 8))
    return np.maximum(factors @ directions, 0).astype(np.float32)


def steps(num_inputs: int, num_outputs: int) -> NDArray[np.float32]:
    return np.clip(20 * weights(num_inputs, num_outputs), -LARGEST, LARGEST)


@pytest.mark.parametrize("num_inputs", [40, 300, 1500])
def test_products_of_other_rows_of_the_kind_change_less_than_with_the_nearest_integers(num_inputs: int) -> None:
    exact, others = steps(num_inputs, 20), correlated(500, num_inputs, seed=2)
    integers = rounded(exact, correlated(254, num_inputs, seed=1), LARGEST)
    assert integers.dtype == np.int8
    change, nearest = (np.square(others @ (each - exact)).mean() for each in (integers, np.rint(exact)))
    assert change < 0.5 * nearest
    assert np.abs(integers - exact).max() < 2, "no weight is given up for the others"


def test_little_is_lost_where_rows_are_few_and_have_nothing_in_common() -> None:
    exact, (rows, others) = steps(300, 20), (np.maximum(weights(254, 300, seed=seed), 0) for seed in (1, 2))
    integers = rounded(exact, rows, LARGEST)
    change, nearest = (np.square(others @ (each - exact)).mean() for each in (integers, np.rint(exact)))
    assert change < 1.1 * nearest


def test_inputs_that_have_nothing_to_do_with_each_other_get_the_nearest_integers() -> None:
    exact = steps(6, 20)
    np.testing.assert_array_equal(rounded(exact, np.diag([1.0, 2, 3, 4, 5, 6]), LARGEST), np.rint(exact))
    np.testing.assert_array_equal(rounded(exact, np.zeros((5, 6)), LARGEST), np.rint(exact))


def test_weights_that_are_integers_stay() -> None:
    exact = np.rint(steps(40, 20))
    np.testing.assert_array_equal(rounded(exact, correlated(100, 40, seed=1), LARGEST), exact)


def test_no_integer_passes_the_largest() -> None:
    exact = np.where(weights(40, 20) > 0, np.float32(63.7), np.float32(-63.7))
    integers = rounded(exact, correlated(100, 40, seed=1), LARGEST)
    assert (integers.max(), integers.min()) == (LARGEST, -LARGEST)


def test_what_is_too_wide_is_rounded_in_parts() -> None:
    exact, rows = steps(1500, 3), correlated(254, 1500, seed=1)
    integers = rounded(exact, rows, LARGEST)
    np.testing.assert_array_equal(integers[:1024], rounded(exact[:1024], rows[:, :1024], LARGEST))
    np.testing.assert_array_equal(integers[1024:], rounded(exact[1024:], rows[:, 1024:], LARGEST))


WIDTH = 120
SQUARE, COLUMNS = weights(WIDTH, WIDTH), weights(WIDTH, 50, seed=1)
HIDDEN = [
    helper.make_node("Gemm", ["x", "square"], ["gemm"], transB=1),
    helper.make_node("Relu", ["gemm"], ["hidden"]),
    helper.make_node("MatMul", ["hidden", "columns"], ["y"]),
    helper.make_node("MatMul", ["x", "columns"], ["other"]),
]


def test_every_product_of_a_graph_is_nearer_with_a_calibration_transposed_and_shared_weights_too() -> None:
    model = graph(HIDDEN, {"x": (WIDTH,)}, ["gemm", "y", "other"], square=SQUARE, columns=COLUMNS)
    calibration = Reference(np.array(["sample"] * 254), {"x": correlated(254, WIDTH, seed=1)})
    x = correlated(500, WIDTH, seed=2)
    expected = run(model, {"x": x})
    for_data, nearest = (run(to_int8(model, SPEC, each), {"x": x}) for each in (calibration, None))
    for name, one, other, right in zip(("gemm", "y", "other"), for_data, nearest, expected, strict=True):
        assert np.square(one - right).mean() < 0.8 * np.square(other - right).mean(), name


def test_a_calibration_changes_nothing_but_the_integers_and_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    model = graph(HIDDEN, {"x": (WIDTH,)}, ["y"], square=SQUARE, columns=COLUMNS)
    before = model.SerializeToString(deterministic=True)
    calibration = Reference(np.array(["sample"] * 254), {"x": correlated(254, WIDTH, seed=1)})
    for_data, nearest = (to_int8(model, SPEC, each) for each in (calibration, None))
    assert for_data.graph.node == nearest.graph.node
    pairs = zip(for_data.graph.initializer, nearest.graph.initializer, strict=True)
    changed = [one.name for one, other in pairs if one != other]
    assert sorted(changed) == ["columns:N_quantized", "square:T_quantized"]
    assert model.SerializeToString(deterministic=True) == before
    assert capfd.readouterr() == ("", "")


def test_a_product_of_what_goes_into_the_graph_needs_nothing_computed() -> None:
    model = graph([helper.make_node("MatMul", ["x", "columns"], ["y"])], {"x": (WIDTH,)}, ["y"], columns=COLUMNS)
    x = correlated(254, WIDTH, seed=1)
    (expected,) = run(model, {"x": x})
    calibration = Reference(np.array(["sample"] * 254), {"x": x})
    (for_data,), (nearest,) = (run(to_int8(model, SPEC, each), {"x": x}) for each in (calibration, None))
    assert np.square(for_data - expected).mean() < 0.8 * np.square(nearest - expected).mean()
