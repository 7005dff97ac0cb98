"""No silent wrong number: a graph that is not what was exported, or not run as exported, does not pass verification."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from edgevae import Bundle, Reference, load, session
from edgevae.providers import create_session
from tests.mutations import Array, Mutation, altered_operators, altered_weights, is_refused, mantissa, rounded

REPOSITORY = Path(__file__).parents[2]
FIXTURES = sorted((REPOSITORY / "tests" / "fixtures" / "bundles").glob("*/*"))
MODELS = sorted((REPOSITORY / "models").iterdir())


def bundles(paths: Sequence[Path], *quick: str) -> list[Any]:
    """Bundles as parameters; those that are not `quick` are slow."""
    return [pytest.param(path, id=path.name, marks=[] if path.name in quick else pytest.mark.slow) for path in paths]


def unseen_harm(bundle: Path, mutations: Iterable[Mutation], folder: Path) -> tuple[int, dict[str, float]]:
    """Return how many mutations there were, and what those that went unseen do on other rows, in tolerances."""
    made, unseen = 0, {}
    for mutation in mutations:
        made += 1
        if not is_refused(bundle, mutation, folder):
            unseen[f"{mutation.graph}: {mutation.what}"] = harm(bundle, mutation)
    return made, unseen


def harm(bundle: Path, mutation: Mutation) -> float:
    """How far a mutation moves the outputs on rows between those of the reference, in tolerances."""
    opened = Bundle(bundle)
    reference = Reference.decode(opened.read(opened.manifest.reference))
    spec, tolerances = opened.manifest.graphs[mutation.graph], opened.manifest.tolerances
    inputs = {tensor.name: between(reference[tensor.name]) for tensor in spec.inputs}
    expected, found = (run(graph, inputs) for graph in (opened.read(spec.file), mutation.model.SerializeToString()))
    summands = reference["x"].shape[1] if mutation.graph == "elbo" else 1
    return max(
        float((np.abs(ours - theirs) / (summands * tolerances.atol + tolerances.rtol * np.abs(theirs))).max())
        for ours, theirs in zip(found, expected, strict=True)
    )


def between(rows: NDArray[Any]) -> NDArray[Any]:
    """Means of neighbouring rows; of integers, the neighbours."""
    neighbours = np.roll(rows, 1, 0)
    return neighbours if rows.dtype == np.int64 else (rows + neighbours) / np.float32(2)


def run(graph: bytes, inputs: dict[str, NDArray[Any]]) -> list[Array]:
    outputs: list[Array] = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, inputs)
    return outputs


@pytest.mark.parametrize("bundle", bundles([*FIXTURES, *MODELS], "decoder", "table"))
def test_each_weight_tensor_off_by_a_thousandth_is_caught(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, unseen = unseen_harm(bundle, altered_weights(bundle, "tensor"), tmp_path / "altered")
    with capsys.disabled():
        print(f"\n{bundle.name}: {made - len(unseen)} of {made} altered tensors caught; unseen {unseen}")  # noqa: T201 - the figures that are claimed
    assert made >= 4
    assert unseen == {}


@pytest.mark.parametrize("part", ["row", "entry"])
@pytest.mark.parametrize("bundle", bundles(FIXTURES, "decoder"))
def test_a_row_or_entry_of_a_weight_off_by_a_thousandth_is_caught_if_it_matters(
    bundle: Path, part: Any, tmp_path: Path
) -> None:
    made, unseen = unseen_harm(bundle, altered_weights(bundle, part), tmp_path / "altered")
    assert made >= 4
    # Between rows of the reference a little more can show: 2.8 times the tolerance with the table, whose columns' units
    # differ by a factor of thousands, and less with the others.
    assert max(unseen.values(), default=0) < 4


@pytest.mark.parametrize("bundle", bundles(FIXTURES, "decoder"))
def test_an_altered_operator_is_caught(bundle: Path, tmp_path: Path) -> None:
    made, unseen = unseen_harm(bundle, altered_operators(bundle), tmp_path / "altered")
    assert made >= 8
    assert max(unseen.values(), default=0) < 1  # what undoes itself: a sign before a square, a bound never reached


@pytest.mark.parametrize(
    "rounding",
    [
        pytest.param(mantissa(7), id="bfloat16"),
        pytest.param(mantissa(10), id="tf32"),
        pytest.param(lambda values: values.astype(np.float16).astype(np.float32), id="float16"),
    ],
)
@pytest.mark.parametrize("bundle", bundles([*FIXTURES, *MODELS], "decoder", "hierarchical", "table"))
def test_a_provider_that_computes_in_a_lower_precision_is_refused(
    bundle: Path, rounding: Callable[[Array], Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    def reduced(graph: bytes, file: str, execution: Any) -> Any:
        lower = rounded(onnx.load_model_from_string(graph), rounding)
        return create_session(lower.SerializeToString(), file, execution)

    assert load(bundle, provider="cpu").verify().passed
    monkeypatch.setattr(session, "create_session", reduced)
    assert not load(bundle, provider="cpu").verify().passed
