"""Verification: what it must catch, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime import Bundle, Model, Reference, verify_outputs

Array = NDArray[np.float32]


@pytest.fixture
def reference(bundle: Path) -> Reference:
    opened = Bundle(bundle)
    return Reference.decode(opened.read(opened.manifest.reference), opened.manifest.model)


def verify(bundle: Path, model: Model, change: Callable[[str, Array], Array]) -> dict[tuple[str, str], bool]:
    """Verify with outputs that `change` has altered; return which checks passed."""

    def encoder(x: Array) -> list[Array]:
        posterior = model.encode(x)
        return [change("z_loc", posterior.z_loc), change("z_scale", posterior.z_scale)]

    def decoder(z: Array) -> list[Array]:
        return [change("decoder", model.decode(z))]

    def reconstruct(x: Array, eps: Array) -> list[Array]:
        return [change("reconstruct", model.reconstruct(x, eps=eps))]

    report = verify_outputs(Bundle(bundle), "onnx", encoder, decoder, reconstruct)
    assert report.passed == all(check.passed for check in report.checks)
    return {(check.graph, check.output.split()[0]): check.passed for check in report.checks}


def test_an_untouched_bundle_passes(model: Model) -> None:
    report = model.verify()
    assert report.passed
    assert report.rows == 256
    outputs = [(check.graph, check.output) for check in report.checks[:4]]
    assert outputs == [("encoder", "z_loc"), ("encoder", "z_scale"), ("decoder", "loc_img"), ("reconstruct", "loc_img")]
    assert all(check.max_abs_diff <= check.tolerance for check in report.checks)


@pytest.mark.parametrize(
    ("output", "check"),
    [
        ("z_loc", ("encoder", "z_loc")),
        ("z_scale", ("encoder", "z_scale")),
        ("decoder", ("decoder", "loc_img")),
        ("reconstruct", ("reconstruct", "loc_img")),
    ],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_value_that_is_not_finite_fails(
    bundle: Path, model: Model, output: str, check: tuple[str, str], value: float
) -> None:
    def spoil_last(name: str, array: Array) -> Array:
        spoiled = array.copy()
        if name == output:
            spoiled[-1, -1] = value
        return spoiled

    assert not verify(bundle, model, spoil_last)[check]


def test_a_difference_at_one_batch_size_only_fails(bundle: Path, model: Model) -> None:
    def spoil_batches_of_seven(name: str, array: Array) -> Array:
        return array + np.float32(1e-3) if name == "z_loc" and len(array) == 7 else array

    passed = verify(bundle, model, spoil_batches_of_seven)
    assert not passed["encoder", "z_loc"]
    assert passed["encoder", "z_scale"]


def test_a_shift_of_the_posterior_shows_as_kl_in_nats(bundle: Path, model: Model, reference: Reference) -> None:
    def shift(name: str, array: Array) -> Array:
        return array + np.float32(0.01) if name == "z_loc" else array

    def encoder(x: Array) -> list[Array]:
        posterior = model.encode(x)
        return [shift("z_loc", posterior.z_loc), posterior.z_scale]

    report = verify_outputs(Bundle(bundle), "onnx", encoder, lambda z: [model.decode(z)], None)
    kl = next(check for check in report.checks if check.output.startswith("KL"))
    expected = (0.5 * (0.01 / reference.z_scale.astype(np.float64)) ** 2).sum(-1).max()
    assert kl.max_abs_diff == pytest.approx(expected, rel=1e-2)
    assert not kl.passed


def test_a_wrong_probability_shows_as_drift_of_the_elbo(bundle: Path, model: Model) -> None:
    def shade(name: str, array: Array) -> Array:
        return (array * np.float32(0.99)) if name == "reconstruct" else array

    assert not verify(bundle, model, shade)["model", "ELBO"]


def test_each_weight_tensor_off_by_a_thousandth_is_caught(bundle: Path, model: Model, tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    report_of = {}
    graph = onnx.load(bundle / "reconstruct.onnx")
    for index, initializer in enumerate(graph.graph.initializer):
        values = onnx.numpy_helper.to_array(initializer)
        if values.ndim == 0:
            continue
        mutated = onnx.ModelProto()
        mutated.CopyFrom(graph)
        mutated.graph.initializer[index].CopyFrom(
            onnx.numpy_helper.from_array((values * np.float32(1.001)).astype(np.float32), initializer.name)
        )
        session = onnxruntime.InferenceSession(mutated.SerializeToString(), providers=["CPUExecutionProvider"])

        def reconstruct(x: Array, eps: Array, session: onnxruntime.InferenceSession = session) -> list[Array]:
            return session.run(None, {"x": x, "eps": eps})

        report = verify_outputs(
            Bundle(bundle),
            "onnx",
            lambda x: [model.encode(x).z_loc, model.encode(x).z_scale],
            lambda z: [model.decode(z)],
            reconstruct,
        )
        report_of[initializer.name] = report.passed
    assert len(report_of) == 10
    assert not any(report_of.values()), report_of


def test_the_report_names_the_worst_place(bundle: Path, model: Model) -> None:
    def encoder(x: Array) -> list[Array]:
        posterior = model.encode(x)
        z_loc = posterior.z_loc.copy()
        if len(x) == 256:
            z_loc[255, 3] += np.float32(0.5)
        return [z_loc, posterior.z_scale]

    report = verify_outputs(Bundle(bundle), "onnx", encoder, lambda z: [model.decode(z)], None)
    assert report.checks[0].worst == "ones row 255 [3], batch 256"
    assert report.checks[0].max_abs_diff == pytest.approx(0.5, rel=1e-4)
    lines = str(report).splitlines()
    assert lines[0].startswith("onnx: FAILED; 256 rows at batch sizes 1, 2, 7, 256")
    assert lines[2].endswith("FAILED")
    assert lines[3].endswith("ok")


def test_the_defaults_are_tight(model: Model) -> None:
    assert model.manifest.tolerances.atol == model.manifest.tolerances.rtol == 1e-5
    assert model.manifest.tolerances.elbo_nats == 1e-2
