"""Looks at the latent."""

from __future__ import annotations

import numpy as np
import pytest

from edgevae import InputError, Model
from edgevae.train import Dataset


def test_a_path_leads_from_one_reconstruction_to_the_other(model: Model, digits: Dataset) -> None:
    x_a, x_b = digits.test[:3].numpy(), digits.test[3:6].numpy()
    path = model.interpolate(x_a, x_b, 5)
    assert path.shape == (3, 5, 64)
    np.testing.assert_allclose(path[:, 0], model.reconstruct(x_a), atol=1e-6)
    np.testing.assert_allclose(path[:, -1], model.reconstruct(x_b), atol=1e-6)
    middle = 0.5 * (np.asarray(model.encode(x_a).z_loc) + np.asarray(model.encode(x_b).z_loc))
    np.testing.assert_allclose(path[:, 2], model.decode(middle), atol=1e-5)


def test_a_traversal_sets_one_dimension(model: Model, digits: Dataset) -> None:
    x = digits.test[:3].numpy()
    found = model.traverse(x, 2, [-3, 0, 3])
    assert found.shape == (3, 3, 64)
    z = np.array(model.encode(x).z_loc)
    z[:, 2] = 3
    np.testing.assert_allclose(found[:, 2], model.decode(z), atol=1e-6)


def test_active_units_are_those_whose_mean_varies(model: Model, digits: Dataset) -> None:
    x = digits.test.numpy()
    expected = np.asarray(model.encode(x).z_loc).var(0) > 0.01
    np.testing.assert_array_equal(model.active_units(x), expected)
    assert expected.any()
    assert not model.active_units(np.repeat(x[:1], 5, axis=0)).any()


def test_what_makes_no_path_is_refused(model: Model, digits: Dataset) -> None:
    x = digits.test[:3].numpy()
    with pytest.raises(InputError, match="steps must be at least 2, got 1"):
        model.interpolate(x, x, 1)
    with pytest.raises(InputError, match="x_a and x_b must have the same number of rows, got 3 and 2"):
        model.interpolate(x, x[:2], 4)
    with pytest.raises(InputError, match="dim must be from 0 to 4, got 5"):
        model.traverse(x, 5, [0.0])
    with pytest.raises(InputError, match=r"span must have shape \(length,\), got \(\)"):
        model.traverse(x, 0, 1.0)
    with pytest.raises(InputError, match="span must be finite"):
        model.traverse(x, 0, [np.nan])
    with pytest.raises(InputError, match="at least 2 rows, whose means can vary, got 1"):
        model.active_units(x[:1])


def test_no_rows_and_no_steps_are_shapes_too(model: Model) -> None:
    none = np.zeros((0, 64), np.float32)
    assert model.interpolate(none, none, 3).shape == (0, 3, 64)
    assert model.traverse(none, 0, [-1.0, 1.0]).shape == (0, 2, 64)
    assert model.traverse(np.zeros((2, 64)), 0, np.zeros(0)).shape == (2, 0, 64)
