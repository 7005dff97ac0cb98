"""Calls whose arguments a graph takes as they are: found at once, and the same in the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from edgevae import Latents, Model, load
from edgevae.graph import Graph, _rows_taken
from edgevae.inputs import MANY
from edgevae.observations import Observations
from edgevae.preprocessing import Preprocessing
from tests.conftest import REPOSITORY

BUNDLES = REPOSITORY / "tests" / "fixtures" / "bundles" / "v1"
X, EPS = np.linspace(0, 1, 27, dtype=np.float32).reshape(3, 9), np.linspace(-2, 2, 6, dtype=np.float32).reshape(3, 2)


@pytest.fixture
def small() -> Model:
    return load(BUNDLES / "mlp", provider="cpu", threads=1)


def with_first(values: NDArray[np.float32], first: float) -> NDArray[np.float32]:
    changed = values.copy()
    changed[0, 0] = first
    return changed


def misaligned(values: NDArray[np.float32]) -> NDArray[np.float32]:
    place = np.frombuffer(bytearray(values.nbytes + 1), np.uint8)[1:].view(np.float32).reshape(values.shape)
    place[:] = values
    return place


NOT_AS_THEY_ARE = {
    "NaN": (with_first(X, np.nan), EPS),
    "below the range": (with_first(X, -1e-6), EPS),
    "above the range": (with_first(X, 1.000001), EPS),
    "noise that is not finite": (X, with_first(EPS, np.inf)),
    "noise that is NaN": (X, with_first(EPS, np.nan)),
    "float64": (X.astype(np.float64), EPS),
    "the other byte order": (X.astype(">f4"), EPS),
    "a list": (X.tolist(), EPS),
    "another shape": (X.reshape(3, 3, 3), EPS),
    "a row alone": (X[0], EPS[0]),
    "a number alone": (X[0, :1].reshape(()), EPS),
    "no rows": (X[:0], EPS[:0]),
    "less noise": (X, EPS[:2]),
    "wider noise": (X, np.zeros((3, 3), np.float32)),
    "not contiguous": (np.asfortranarray(X), EPS),
    "not aligned": (X, misaligned(EPS)),
    "masked": (np.ma.masked_array(X, X > 0.5), EPS),
    "latents": (X, Latents.of(EPS, "another")),
    "too many rows": (np.tile(X, (1000, 1)), np.tile(EPS, (1000, 1))),
}


@pytest.mark.parametrize("case", list(NOT_AS_THEY_ARE))
def test_what_needs_a_closer_look_is_not_run(small: Model, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    def run(*_args: object) -> None:
        raise AssertionError

    monkeypatch.setattr(Graph, "_run", run)
    x, eps = NOT_AS_THEY_ARE[case]
    assert small._graphs["reconstruct"].run_as_is(x=x, eps=eps) is None


def test_many_values_are_looked_at_in_the_way_that_is_quicker_for_them(bundle: Path) -> None:
    graph = load(bundle, provider="cpu", threads=4)._graphs["encoder"]
    x = np.zeros((MANY // 64, 64), np.float32)
    assert graph.run_as_is(x=x) is None
    assert graph.run_as_is(x=x[1:]) is not None


def test_observations_in_another_scale_are_never_taken_as_they_are(small: Model) -> None:
    done = Preprocessing(scale=(0.0, 16.0))
    manifest = msgspec.structs.replace(small.manifest, preprocessing=done)
    for name in ("encoder", "reconstruct"):
        assert _rows_taken(manifest.graphs[name].inputs, small.manifest)
        assert not _rows_taken(manifest.graphs[name].inputs, manifest)
    assert _rows_taken(manifest.graphs["decoder"].inputs, manifest)


@pytest.mark.parametrize("name", ["mlp", "mixture", "table", "hierarchical"])
def test_a_call_as_it_is_has_the_result_of_a_closer_look(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(BUNDLES / name, provider="cpu")
    x = X[:, :4] * 7 if name == "table" else X
    y = 3 if model.num_classes else None
    calls: tuple[Callable[[], NDArray[np.float32]], ...] = (
        lambda: model.encode(x, y=y).z_loc,
        lambda: model.decode(EPS, y=y),
        lambda: model.reconstruct(x, y=y, eps=EPS),
    )
    found = [call() for call in calls]
    for part in ("encoder", "decoder", "reconstruct"):
        graph = model._graphs[part]
        takes, _ = graph._shapes_of(3)
        assert bool(takes) == (name != "hierarchical")  # which here is conditional, and scaled
    monkeypatch.setattr(Graph, "run_as_is", lambda *_args, **_arrays: None)
    for call, expected in zip(calls, found, strict=True):
        np.testing.assert_array_equal(call(), expected)


def test_a_call_as_it_is_goes_straight_to_its_graph(small: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = small.reconstruct(X, eps=EPS), small.encode(X).z_scale
    monkeypatch.delattr(Observations, "given")
    np.testing.assert_array_equal(small.reconstruct(X, eps=EPS), expected[0])
    np.testing.assert_array_equal(small.encode(X).z_scale, expected[1])
    with pytest.raises(AttributeError, match="given"):
        small.reconstruct(X, seed=0)
