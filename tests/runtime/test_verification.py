"""Verification: what it must catch, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from edgevae import Bundle, BundleError, GraphName, Model, Reference, Report, RunnableGraph, verify_graphs
from edgevae.export import Source, export_bundle
from edgevae.providers import Execution
from edgevae.session import Graphs
from edgevae.train import VAE, Dataset, ModelConfig
from tests.fuzz.reference import npy, npz

Array = NDArray[np.float32]
Change = Callable[[str, Array], Array]


class Changed:
    """A graph whose outputs somebody has altered."""

    def __init__(self, graph: RunnableGraph, change: Change) -> None:
        self.inputs, self.outputs = graph.inputs, graph.outputs
        self._graph, self._change = graph, change

    def __call__(self, arrays: Mapping[str, NDArray[Any]]) -> Mapping[str, Array]:
        return {name: self._change(name, output.copy()) for name, output in self._graph(arrays).items()}


def opened(path: Path) -> Graphs:
    return Graphs(Bundle(path), Execution.of("cpu", 1, None, None))


def verify(bundle: Path, model: Model, graph: GraphName, change: Change) -> Report:
    graphs = opened(bundle)
    changed: dict[GraphName, RunnableGraph] = {**graphs, graph: Changed(graphs[graph], change)}
    return verify_graphs(Bundle(bundle), "onnx", changed)


def passed(report: Report) -> Mapping[tuple[str, str], bool]:
    assert report.passed == all(check.passed for check in report.checks)
    return {(check.graph, check.output.split()[0]): check.passed for check in report.checks}


@pytest.fixture
def reference(bundle: Path) -> Reference:
    opened = Bundle(bundle)
    return Reference.decode(opened.read(opened.manifest.reference))


def test_an_untouched_bundle_passes(model: Model) -> None:
    report = model.verify()
    assert report.passed
    assert report.rows == 256
    assert [(check.graph, check.output) for check in report.checks] == [
        ("encoder", "z_loc"),
        ("encoder", "z_scale"),
        ("decoder", "loc_img"),
        ("reconstruct", "loc_img"),
        ("elbo", "log_px_z"),
        ("elbo", "log_pz"),
        ("elbo", "log_qz_x"),
        ("observation", "obs"),
        ("model", "KL(q_pyro ‖ q_onnx) nats"),
        ("model", "ELBO drift nats"),
    ]
    assert all(check.max_abs_diff <= 1e-3 for check in report.checks)


@pytest.mark.parametrize(
    ("graph", "output"),
    [
        ("encoder", "z_loc"),
        ("encoder", "z_scale"),
        ("decoder", "loc_img"),
        ("reconstruct", "loc_img"),
        ("elbo", "log_px_z"),
    ],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_value_that_is_not_finite_fails(
    bundle: Path, model: Model, graph: GraphName, output: str, value: float
) -> None:
    def spoil_last(name: str, array: Array) -> Array:
        if name == output:
            array.flat[-1] = value
        return array

    assert not passed(verify(bundle, model, graph, spoil_last))[graph, output]


def test_a_difference_at_one_batch_size_only_fails(bundle: Path, model: Model) -> None:
    def spoil_batches_of_seven(name: str, array: Array) -> Array:
        return array + np.float32(1e-3) if name == "z_loc" and len(array) == 7 else array

    outcome = passed(verify(bundle, model, "encoder", spoil_batches_of_seven))
    assert not outcome["encoder", "z_loc"]
    assert outcome["encoder", "z_scale"]


def test_a_shift_of_the_posterior_shows_as_kl_in_nats(bundle: Path, model: Model, reference: Reference) -> None:
    report = verify(bundle, model, "encoder", lambda name, array: array + np.float32(0.01 * (name == "z_loc")))
    kl = next(check for check in report.checks if check.output.startswith("KL"))
    expected = (0.5 * (0.01 / reference["z_scale"].astype(np.float64)) ** 2).sum(-1).max()
    assert kl.max_abs_diff == pytest.approx(expected, rel=1e-2)
    assert not kl.passed


def test_a_wrong_probability_shows_as_drift_of_the_elbo(bundle: Path, model: Model) -> None:
    report = verify(bundle, model, "decoder", lambda _, array: array * np.float32(0.99))
    assert not passed(report)["model", "ELBO"]


def test_each_weight_tensor_off_by_a_thousandth_is_caught(bundle: Path, model: Model) -> None:
    graph = onnx.load(bundle / "reconstruct.onnx")
    caught = {}
    for index, initializer in enumerate(graph.graph.initializer):
        values = onnx.numpy_helper.to_array(initializer)
        if values.ndim == 0 or values.dtype != np.float32:  # constants of an operator
            continue
        mutated = onnx.ModelProto()
        mutated.CopyFrom(graph)
        weight = onnx.numpy_helper.from_array((values * np.float32(1.001)).astype(np.float32), initializer.name)
        mutated.graph.initializer[index].CopyFrom(weight)
        session = onnxruntime.InferenceSession(mutated.SerializeToString(), providers=["CPUExecutionProvider"])
        graphs: dict[GraphName, RunnableGraph] = {**opened(bundle), "reconstruct": _Session(session)}
        caught[initializer.name] = not verify_graphs(Bundle(bundle), "onnx", graphs).passed
    assert len(caught) == 8  # the two heads are one product
    assert all(caught.values()), caught


class _Session:
    inputs, outputs = ("x", "eps"), ("loc_img",)

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session

    def __call__(self, arrays: Mapping[str, NDArray[Any]]) -> Mapping[str, Array]:
        outputs = self._session.run(None, {name: arrays[name] for name in self.inputs})
        return dict(zip(self.outputs, outputs, strict=True))


def test_the_report_names_the_worst_place(bundle: Path, model: Model) -> None:
    def spoil_one(name: str, array: Array) -> Array:
        if name == "z_loc" and len(array) == 256:
            array[255, 3] += 0.5
        return array

    report = verify(bundle, model, "encoder", spoil_one)
    assert report.checks[0].worst == "highest row 255 [3], batch 256"
    assert report.checks[0].max_abs_diff == pytest.approx(0.5, rel=1e-4)
    lines = str(report).splitlines()
    assert lines[0].startswith("onnx: FAILED; 256 rows at batch sizes 1, 2, 7, 256")
    assert lines[2].endswith("FAILED")
    assert lines[3].endswith("ok")


def test_a_failed_row_shows_a_value_that_failed(bundle: Path, model: Model, reference: Reference) -> None:
    z_scale = reference["z_scale"]
    large = np.unravel_index(np.argmax(z_scale), z_scale.shape)
    small = np.unravel_index(np.argmin(z_scale), z_scale.shape)

    def spoil(name: str, array: Array) -> Array:
        if name == "z_scale" and len(array) == 256:
            array[small] += 1.2e-5 + 1e-5 * z_scale[small]  # out of tolerance
        return array

    assert z_scale[large] > z_scale[small]
    check = verify(bundle, model, "encoder", spoil).checks[1]
    assert not check.passed
    assert check.worst.endswith(f"row {small[0]} [{small[1]}], batch 256")
    assert check.max_abs_diff > check.tolerance


def test_the_defaults_are_tight(model: Model) -> None:
    assert model.manifest.tolerances.atol == model.manifest.tolerances.rtol == 1e-5
    assert model.manifest.tolerances.elbo_nats == 1e-2


def test_the_tolerance_of_the_elbos_terms_follows_their_values(bundle: Path, model: Model) -> None:
    checks = {check.output: check for check in model.verify().checks if check.graph == "elbo"}
    reference = Reference.decode(Bundle(bundle).read(model.manifest.reference))
    for output, summands in (("log_px_z", 64), ("log_pz", 5), ("log_qz_x", 5)):
        row = int(checks[output].worst.split("row ")[1].split(",")[0])
        expected = 1e-5 * (summands + abs(float(reference[output][row])))
        assert checks[output].tolerance == pytest.approx(expected, rel=1e-6)

    def off_by_a_little_more(name: str, array: Array) -> Array:
        return array + np.float32(5e-4 * (name == "log_pz"))

    assert not passed(verify(bundle, model, "elbo", off_by_a_little_more))["elbo", "log_pz"]


def test_a_log_density_near_zero_is_judged_by_the_values_that_it_sums(digits: Dataset, tmp_path: Path) -> None:
    # A sum of 784 terms of both signs has the rounding of its terms, however near to zero it comes out.
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        vae = VAE(ModelConfig((1, 28, 28), 5, 16, likelihood="normal", data_loc=0.3, data_scale=0.35)).eval()
        with torch.no_grad():
            vae.decoder.likelihood.get_parameter("raw_scale").fill_(-1.4)
            centre = vae.decoder(torch.zeros(1, 5))
            scale = vae.decoder.likelihood.distribution(vae.decoder.outputs_at(torch.zeros(1, 5))).scale
            samples = centre + scale * torch.linspace(1.2, 1.6, 254)[:, None] * torch.randn(254, 784)
    (report,) = export_bundle(Source("near", vae, samples, "samples", None), tmp_path / "near")
    log_px_z = next(check for check in report.checks if check.output == "log_px_z")
    assert log_px_z.tolerance >= 784e-5
    bundle = Bundle(tmp_path / "near")
    reference = Reference.decode(bundle.read(bundle.manifest.reference))
    assert reference["log_px_z"][:254].min() < 0 < reference["log_px_z"][:254].max()


def test_a_reference_with_a_shape_that_no_array_can_have_is_damaged() -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 0, 999999999, 999999999, 999999999), }\n"
    impossible = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header
    with pytest.raises(BundleError, match=r"reference\.npz is damaged: cannot be read: 'x': .*too big"):
        Reference.decode(npz(case=npy(np.array(["sample"])), x=impossible))


def test_the_drift_of_an_elbo_of_thousands_of_nats_is_judged_by_its_size(tmp_path: Path) -> None:
    with torch.random.fork_rng([]):
        torch.manual_seed(8)
        vae = VAE(ModelConfig((1, 28, 28), 3, 8, likelihood="normal", data_scale=1e6)).eval()
        samples = 1e6 * torch.randn(254, 784)  # 14 nats a value, which are those of its unit
    (report,) = export_bundle(Source("far", vae, samples, "samples", None), tmp_path / "far")
    bundle = Bundle(tmp_path / "far")
    elbo = Reference.decode(bundle.read(bundle.manifest.reference)).elbo
    drift = report.checks[-1]
    assert elbo.min() < -10_000
    assert 0.01 < drift.tolerance <= 0.01 + 1e-6 * np.abs(elbo).max()


def test_a_small_common_bias_fails(bundle: Path, model: Model) -> None:
    report = verify(bundle, model, "decoder", lambda _, array: array + np.float32(2e-6))
    check = next(check for check in report.checks if check.graph == "decoder")
    assert (check.passed, check.worst) == (False, "mean of all rows, batch 1")
    assert check.tolerance < check.max_abs_diff == pytest.approx(2e-6, rel=0.3)
    there_and_back = np.where(np.arange(64) % 2, 2e-6, -2e-6).astype(np.float32)
    assert passed(verify(bundle, model, "decoder", lambda _, array: array + there_and_back))["decoder", "loc_img"]
