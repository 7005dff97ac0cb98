"""Lower precisions: smaller and faster graphs, and what they may cost."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor, nn

from edgevae import BundleError, InputError, Manifest, Precision, Reference, load
from edgevae.cli import main as run_main
from edgevae.export import (
    LIMITS_NATS,
    ExportError,
    GraphError,
    PrecisionError,
    Source,
    build_wheel,
    export_bundle,
)
from edgevae.export.precision import gptq_round, to_int8
from edgevae.export.rewrites import FROM_TRANSPOSED
from edgevae.train import (
    VAE,
    AbstractDecoder,
    AbstractEncoder,
    Dataset,
    ModelConfig,
    Trainer,
    TrainingConfig,
    load_dataset,
)
from tests.export.graphs import SPEC, graph, operators, run, weights


@pytest.fixture(scope="module")
def trained(digits: Dataset) -> Source:
    """A trained model: what an untrained one loses may as well be a gain."""
    trainer = Trainer(ModelConfig((1, 8, 8), 5, 64), TrainingConfig(batch_size=64, seed=0), torch.device("cpu"))
    for _ in range(20):
        trainer.fit_epoch(digits.train)
    source = Source("small", trainer.vae.eval(), digits.test, "test images of digits", None)
    return dataclasses.replace(source, train_samples=digits.train[:256])


@pytest.fixture(scope="module")
def reduced(trained: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("precisions") / "small"
    reports = export_bundle(trained, out, precisions=LIMITS_NATS)
    assert [report.format for report in reports] == ["onnx", "onnx fp16", "onnx int8"]
    return out


def products(path: Path) -> dict[str, int]:
    found = operators(onnx.load(path))
    return {name: found.count(name) for name in ("Gemm", "MatMul", "MatMulInteger")}


def test_the_manifest_says_what_each_precision_loses(reduced: Path) -> None:
    manifest = load(reduced).manifest
    assert list(manifest.precisions) == ["fp16", "int8"]
    for name, spec in manifest.precisions.items():
        assert set(spec.graphs) == {"encoder", "decoder", "reconstruct"}
        assert abs(spec.elbo_lost_nats) <= spec.limit_nats == LIMITS_NATS[name]
    card = (reduced / "README.md").read_text(encoding="utf-8")
    assert f"| int8 | loses {manifest.precisions['int8'].elbo_lost_nats:.3f} nats a row" in card


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 3e-3), ("int8", 0.3)])
def test_a_precision_gives_nearly_the_same_and_verifies(
    reduced: Path, digits: Dataset, precision: Precision, tolerance: float
) -> None:
    exact, model = load(reduced, provider="cpu"), load(reduced, provider="cpu", precision=precision)
    x = digits.test[:50].numpy()
    found, expected = model.reconstruct(x, seed=0), exact.reconstruct(x, seed=0)
    assert 0 < np.abs(found - expected).max() < tolerance
    np.testing.assert_allclose(model.decode(model.encode(x).sample(seed=0)), found, atol=tolerance)
    lost = (exact.elbo(x, 0) - model.elbo(x, 0)).mean()
    assert abs(lost) < 1
    assert model.latent_space_id == exact.latent_space_id
    assert (model.precision, exact.precision) == (precision, "fp32")
    assert model.verify().passed
    assert pickle.loads(pickle.dumps(model)).precision == precision  # noqa: S301 - our own


def test_int8_alone_has_a_coarse_softplus(reduced: Path) -> None:
    found = {name: operators(onnx.load(reduced / f"reconstruct{name}.onnx")) for name in ("", ".fp16", ".int8")}
    assert [name for name in found if "HardSigmoid" in found[name]] == [".int8"]
    assert [name for name in found if "Log" in found[name]] == ["", ".fp16"]


def test_int8_cannot_overflow_without_vnni(reduced: Path) -> None:
    weights = [
        onnx.numpy_helper.to_array(entry) for entry in onnx.load(reduced / "reconstruct.int8.onnx").graph.initializer
    ]
    widths = [np.abs(weight.astype(int)).max() for weight in weights if weight.dtype == np.int8 and weight.ndim == 2]
    assert len(widths) == 4
    assert 2 * max(widths) * 255 < 2**15, "a pair of products must fit into 16 bits: that is how VNNI's elders add them"


def test_int8_takes_every_product_of_networks_without_convolutions(reduced: Path) -> None:
    assert products(reduced / "encoder.int8.onnx") == {"Gemm": 0, "MatMul": 0, "MatMulInteger": 2}
    assert products(reduced / "decoder.int8.onnx") == {"Gemm": 0, "MatMul": 0, "MatMulInteger": 2}
    assert products(reduced / "reconstruct.int8.onnx") == {"Gemm": 0, "MatMul": 0, "MatMulInteger": 4}
    assert products(reduced / "reconstruct.onnx") == {"Gemm": 4, "MatMul": 0, "MatMulInteger": 0}


def test_without_training_data_int8_leaves_the_products_of_the_latent_and_is_less_exact_all_the_same(
    trained: Source, reduced: Path, tmp_path: Path
) -> None:
    export_bundle(dataclasses.replace(trained, train_samples=None), tmp_path / "out", precisions={"int8": 0.5})
    for name, taken in {"encoder": 1, "decoder": 1, "reconstruct": 2}.items():
        found = products(tmp_path / "out" / f"{name}.int8.onnx")
        assert (found["MatMulInteger"], found["Gemm"] + found["MatMul"]) == (taken, taken)
    x = trained.samples.numpy()
    exact = load(reduced, provider="cpu").reconstruct(x, seed=0)
    for_data, nearest = (
        np.square(load(folder, provider="cpu", precision="int8").reconstruct(x, seed=0) - exact).mean()
        for folder in (reduced, tmp_path / "out")
    )
    assert for_data < 0.7 * nearest


@pytest.fixture(scope="module")
def convolutional(digits: Dataset) -> Source:
    trainer = Trainer(
        ModelConfig((1, 8, 8), 4, 32, architecture="conv"), TrainingConfig(batch_size=64), torch.device("cpu")
    )
    for _ in range(5):
        trainer.fit_epoch(digits.train)
    source = Source("small", trainer.vae.eval(), digits.test, "test images of digits", None)
    return dataclasses.replace(source, train_samples=digits.train[:256])


@pytest.fixture(scope="module")
def convolutional_int8(convolutional: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("convolutional") / "small"
    export_bundle(convolutional, out, precisions={"int8": 0.5})
    return out


def integer_weights_of_convolutions(path: Path) -> list[np.ndarray]:
    """Return the weights that come to a convolution out of integers."""
    graph = onnx.load(path).graph
    weights = {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.initializer}
    widened = {node.output[0]: weights.get(node.input[0]) for node in graph.node if node.op_type == "DequantizeLinear"}
    found = [widened.get(node.input[1]) for node in graph.node if node.op_type == "Conv"]
    return [weight for weight in found if weight is not None]


def test_int8_takes_wide_convolutions_where_training_data_calibrate_them(
    convolutional: Source, convolutional_int8: Path
) -> None:
    weights = integer_weights_of_convolutions(convolutional_int8 / "encoder.int8.onnx")
    assert [weight.dtype for weight in weights] == [np.int8] * 2
    assert all(weight.shape[1] > 1 for weight in weights), "the first one reads a single channel, and stays"
    assert max(np.abs(weight.astype(int)).max() for weight in weights) <= 64, "seven bits, as for products"
    exact, model = (load(convolutional_int8, provider="cpu", precision=name) for name in ("fp32", "int8"))
    x = convolutional.samples[:50].numpy()
    assert 0 < np.abs(model.encode(x).z_loc - exact.encode(x).z_loc).max() < 0.2


def test_the_quantized_range_of_a_convolution_before_a_relu_starts_at_zero(convolutional_int8: Path) -> None:
    graph = onnx.load(convolutional_int8 / "reconstruct.int8.onnx").graph
    made_by = {node.output[0]: node for node in graph.node}
    zeros = {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.initializer}
    quantized = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    sources = [made_by[node.input[0]].op_type for node in quantized]
    assert sources == ["Relu", "Conv", "Conv"], (
        "the second and third Relu are in what their convolutions are rounded to"
    )
    assert [int(zeros[node.input[2]]) for node in quantized] == [0, 0, 0]


def test_int8_leaves_former_transposed_convolutions_and_latent_products_in_float32(
    convolutional_int8: Path,
) -> None:
    assert "DepthToSpace" in operators(onnx.load(convolutional_int8 / "decoder.onnx"))
    assert integer_weights_of_convolutions(convolutional_int8 / "decoder.int8.onnx") == []
    assert len(integer_weights_of_convolutions(convolutional_int8 / "reconstruct.int8.onnx")) == 2, "the encoder's"
    expected = {"Gemm": 0, "MatMul": 2, "MatMulInteger": 1}  # to the latent, and the order of pixels
    assert products(convolutional_int8 / "decoder.int8.onnx") == expected


def test_convolutions_stay_in_float32_without_training_data(convolutional: Source, tmp_path: Path) -> None:
    export_bundle(dataclasses.replace(convolutional, train_samples=None), tmp_path / "out", precisions={"int8": 0.5})
    assert integer_weights_of_convolutions(tmp_path / "out" / "encoder.int8.onnx") == []
    assert products(tmp_path / "out" / "encoder.int8.onnx")["MatMulInteger"] == 1


def test_fp16_halves_the_weights(reduced: Path) -> None:
    half, full = ((reduced / f"encoder{part}.onnx").stat().st_size for part in (".fp16", ""))
    assert half < 0.7 * full  # the rest is structure, which larger models do not notice
    assert products(reduced / "encoder.fp16.onnx") == products(reduced / "encoder.onnx")


def test_a_precision_that_loses_too_much_is_an_error_that_says_how_much(trained: Source, tmp_path: Path) -> None:
    with pytest.raises(
        PrecisionError, match=r"int8 loses [\d.]+ nats a row of the mean ELBO, more than the limit of 0; "
    ) as error:
        export_bundle(trained, tmp_path / "small", precisions={"int8": 0.0})
    assert error.value.lost_nats > 0
    assert list(tmp_path.iterdir()) == []


def test_a_part_of_the_model_has_no_elbo_to_measure_a_precision_by(trained: Source, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"the loss of int8 is measured by the ELBO.*--graphs all"):
        export_bundle(trained, tmp_path / "small", part="encoder", precisions={"int8": 10.0})


def test_a_bundle_without_a_precision_says_which_it_has(bundle: Path) -> None:
    with pytest.raises(
        InputError, match=r"one that the bundle has, fp32, got 'int8'; export it with vae-export --prec"
    ):
        load(bundle, precision="int8")


def test_a_changed_file_of_a_precision_is_refused_and_the_others_load(reduced: Path, tmp_path: Path) -> None:
    shutil.copytree(reduced, tmp_path / "small")
    (tmp_path / "small" / "decoder.int8.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"decoder\.int8\.onnx was changed after export"):
        load(tmp_path / "small", precision="int8")
    assert load(tmp_path / "small", precision="fp16").precision == "fp16"


def test_verification_fails_where_more_is_lost_than_the_bundle_says(reduced: Path, tmp_path: Path) -> None:
    shutil.copytree(reduced, tmp_path / "small")
    path = tmp_path / "small" / "manifest.json"
    manifest = Manifest.decode(path.read_bytes())
    spec = msgspec.structs.replace(manifest.precisions["int8"], limit_nats=0.0)
    path.write_bytes(msgspec.structs.replace(manifest, precisions={"int8": spec}).encode())
    report = load(tmp_path / "small", provider="cpu", precision="int8").verify()
    assert not report.passed
    assert [check.output for check in report.checks if not check.passed] == ["mean ELBO lost, nats"]


def test_the_command_line_runs_and_shows_a_precision(reduced: Path) -> None:
    result = CliRunner().invoke(run_main, ["verify", str(reduced), "--precision", "int8", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["format"], found["passed"]) == ("onnx int8", True)
    info = CliRunner().invoke(run_main, ["info", str(reduced)])
    assert "nats a row of the mean ELBO lost" in info.output


def test_a_wheel_brings_the_precisions(reduced: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(build_wheel(reduced, tmp_path)) as archive:
        assert "small/bundle/reconstruct.int8.onnx" in archive.namelist()


def test_a_conditional_models_precision_is_measured_with_its_labels(tmp_path: Path) -> None:
    labelled = load_dataset("digits", labels=True)
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        vae = VAE(ModelConfig((1, 8, 8), 3, 32, num_classes=10)).eval()
    source = Source("small", vae, labelled.test, "test images of digits", None, labelled.test_labels)
    export_bundle(source, tmp_path / "small", precisions={"int8": 0.5})
    assert load(tmp_path / "small", provider="cpu", precision="int8").verify().passed


# Single graphs


def calibration(x: NDArray[np.float32]) -> Reference:
    return Reference(np.array(["sample"] * len(x)), {"x": x})


def convolution(*behind: onnx.NodeProto, channels: int = 8, weight: str = "w", output: str = "maps") -> onnx.ModelProto:
    """A convolution of `x`, `maps`, and what reads it."""
    node = helper.make_node("Conv", ["x", weight], ["maps"], name="conv")
    return graph([node, *behind], {"x": (channels, 5, 5)}, [output], **{weight: weights(4, channels, 3, 3)})


def quantized(model: onnx.ModelProto, channels: int = 8) -> onnx.ModelProto:
    return to_int8(model, SPEC, calibration(weights(4, channels, 5, 5, seed=1)))


@pytest.mark.parametrize("channels", [8, 64])
def test_convolutions_of_eight_channels_and_more_are_quantized(channels: int) -> None:
    assert operators(quantized(convolution(channels=channels), channels)).count("QuantizeLinear") == 2


@pytest.mark.parametrize("channels", [1, 7])
def test_convolutions_of_fewer_channels_are_not(channels: int) -> None:
    with pytest.raises(GraphError, match="no convolutions of at least 8 channels"):
        quantized(convolution(channels=channels), channels)


def test_convolutions_that_were_transposed_or_have_computed_weights_are_not_quantized() -> None:
    nodes = [helper.make_node("Neg", ["w"], ["-w"]), helper.make_node("Conv", ["x", "-w"], ["y"], name="conv")]
    computed = graph(nodes, {"x": (8, 5, 5)}, ["y"], w=np.ones((4, 8, 3, 3), np.float32))
    for model in (convolution(weight=f"{FROM_TRANSPOSED}w"), computed):
        with pytest.raises(GraphError, match="int8 has nothing to quantize"):
            quantized(model)


RELU = helper.make_node("Relu", ["maps"], ["hidden"], name="relu")
ABS = helper.make_node("Abs", ["maps"], ["absolute"], name="abs")
AGAIN = helper.make_node("Relu", ["hidden"], ["again"], name="again")


def test_the_only_relu_behind_a_convolution_is_quantized_in_its_place() -> None:
    assert operators(quantized(convolution(RELU, AGAIN, output="again"))).count("Relu") == 1, "one is the rounding"
    total = helper.make_node("Add", ["hidden", "absolute"], ["total"], name="total")
    assert operators(quantized(convolution(RELU, ABS, total, output="total"))).count("Relu") == 1, "it stays"


def test_a_graph_with_nothing_to_compute_in_integers_is_an_error() -> None:
    computed = graph([helper.make_node("MatMul", ["x", "x"], ["y"])], {"x": (3, 3)}, ["y"])
    scaled = graph([helper.make_node("Gemm", ["x", "w"], ["y"], alpha=0.5)], {"x": (4,)}, ["y"], w=weights(4, 4))
    turned = graph([helper.make_node("Gemm", ["x", "w"], ["y"], transA=1)], {"x": (4,)}, ["y"], w=weights(4, 4))
    for model in (convolution(), computed, scaled, turned):
        with pytest.raises(
            GraphError, match="int8 has nothing to quantize in graph: it has no products with constant weights"
        ):
            to_int8(model, SPEC, None)


LAYERS = {
    "with a factor": helper.make_node("Gemm", ["h", "w", "b"], ["y"], alpha=0.5),
    "with a factor of the bias": helper.make_node("Gemm", ["h", "w", "b"], ["y"], beta=0.5),
    "transposed again": helper.make_node("Gemm", ["h", "v", "b"], ["y"], transB=1),
    "not transposed": helper.make_node("Gemm", ["h", "v", "b"], ["y"]),
    "without a bias": helper.make_node("Gemm", ["h", "v"], ["y"], transB=1),
    "of sequences": helper.make_node("MatMul", ["t", "v"], ["y"]),
}


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_int8_products_of_all_kinds_are_close_beside_a_transposed_product(layer: str, *, calibrated: bool) -> None:
    first = helper.make_node("Gemm", ["x", "v", "b"], ["h"], transB=1)
    parts = helper.make_node("Reshape", ["h", "shape"], ["t"])
    arrays = {
        "v": weights(40, 40),
        "w": weights(40, 40, seed=1),
        "b": weights(40, seed=2),
        "v_scale": weights(40, 40, seed=3),
    }
    nodes = [first, parts, LAYERS[layer], helper.make_node("Gemm", ["h", "v_scale"], ["z"])]
    model = graph(nodes, {"x": (40,)}, ["h", "y", "z"], **arrays, shape=np.array([-1, 2, 40]))
    x = np.maximum(weights(100, 40, seed=4), 0)
    reduced = to_int8(model, SPEC, calibration(x) if calibrated else None)
    assert "MatMulInteger" in operators(reduced)
    for found, expected in zip(run(reduced, {"x": x}), run(model, {"x": x}), strict=True):
        assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


# GPTQ

LARGEST = 64


def correlated(num_rows: int, num_inputs: int, *, seed: int) -> NDArray[np.float32]:
    """Rows that a hidden layer could hold: from 0 on, and most of what they show in a few directions."""
    directions = np.random.default_rng(5).standard_normal((8, num_inputs))
    factors = np.random.default_rng(seed).standard_normal((num_rows, 8))
    return np.maximum(factors @ directions, 0).astype(np.float32)


def steps(num_inputs: int, num_outputs: int) -> NDArray[np.float32]:
    return np.clip(20 * weights(num_inputs, num_outputs), -LARGEST, LARGEST)


@pytest.mark.parametrize("num_inputs", [40, 300, 1500])
def test_gptq_changes_unseen_products_less_than_rounding_to_nearest(num_inputs: int) -> None:
    exact, others = steps(num_inputs, 20), correlated(500, num_inputs, seed=2)
    integers = gptq_round(exact, correlated(254, num_inputs, seed=1), LARGEST)
    assert integers.dtype == np.int8
    change, nearest = (np.square(others @ (each - exact)).mean() for each in (integers, np.rint(exact)))
    assert change < 0.5 * nearest
    assert np.abs(integers - exact).max() < 2, "no weight is given up for the others"


def test_few_unrelated_calibration_rows_do_little_harm() -> None:
    exact, (rows, others) = steps(300, 20), (np.maximum(weights(254, 300, seed=seed), 0) for seed in (1, 2))
    integers = gptq_round(exact, rows, LARGEST)
    change, nearest = (np.square(others @ (each - exact)).mean() for each in (integers, np.rint(exact)))
    assert change < 1.1 * nearest


def test_inputs_that_have_nothing_to_do_with_each_other_get_the_nearest_integers() -> None:
    exact = steps(6, 20)
    np.testing.assert_array_equal(gptq_round(exact, np.diag([1.0, 2, 3, 4, 5, 6]), LARGEST), np.rint(exact))
    np.testing.assert_array_equal(gptq_round(exact, np.zeros((5, 6)), LARGEST), np.rint(exact))


def test_weights_that_are_integers_stay() -> None:
    exact = np.rint(steps(40, 20))
    np.testing.assert_array_equal(gptq_round(exact, correlated(100, 40, seed=1), LARGEST), exact)


def test_no_integer_exceeds_the_limit() -> None:
    exact = np.where(weights(40, 20) > 0, np.float32(63.7), np.float32(-63.7))
    integers = gptq_round(exact, correlated(100, 40, seed=1), LARGEST)
    assert (integers.max(), integers.min()) == (LARGEST, -LARGEST)


def test_wide_products_are_rounded_in_blocks() -> None:
    exact, rows = steps(1500, 3), correlated(254, 1500, seed=1)
    integers = gptq_round(exact, rows, LARGEST)
    np.testing.assert_array_equal(integers[:1024], gptq_round(exact[:1024], rows[:, :1024], LARGEST))
    np.testing.assert_array_equal(integers[1024:], gptq_round(exact[1024:], rows[:, 1024:], LARGEST))


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
    known = calibration(correlated(254, WIDTH, seed=1))
    x = correlated(500, WIDTH, seed=2)
    expected = run(model, {"x": x})
    for_data, nearest = (run(to_int8(model, SPEC, each), {"x": x}) for each in (known, None))
    for name, one, other, right in zip(("gemm", "y", "other"), for_data, nearest, expected, strict=True):
        assert np.square(one - right).mean() < 0.8 * np.square(other - right).mean(), name


def test_a_calibration_changes_nothing_but_the_integers_and_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    model = graph(HIDDEN, {"x": (WIDTH,)}, ["y"], square=SQUARE, columns=COLUMNS)
    before = model.SerializeToString(deterministic=True)
    known = calibration(correlated(254, WIDTH, seed=1))
    for_data, nearest = (to_int8(model, SPEC, each) for each in (known, None))
    assert for_data.graph.node == nearest.graph.node
    pairs = zip(for_data.graph.initializer, nearest.graph.initializer, strict=True)
    changed = [one.name for one, other in pairs if one != other]
    assert sorted(changed) == ["columns:N_quantized", "square:T_quantized"]
    assert model.SerializeToString(deterministic=True) == before
    assert capfd.readouterr() == ("", "")


def test_calibrating_a_product_of_the_graphs_input_runs_no_session() -> None:
    model = graph([helper.make_node("MatMul", ["x", "columns"], ["y"])], {"x": (WIDTH,)}, ["y"], columns=COLUMNS)
    x = correlated(254, WIDTH, seed=1)
    (expected,) = run(model, {"x": x})
    (for_data,), (nearest,) = (run(to_int8(model, SPEC, each), {"x": x}) for each in (calibration(x), None))
    assert np.square(for_data - expected).mean() < 0.8 * np.square(nearest - expected).mean()


# A user's own encoders


class Twice(AbstractEncoder):
    """A layer that is used twice."""

    def make_features(self) -> None:
        self.first = nn.Linear(self.data_dim, self.hidden_dim)
        self.again = nn.Linear(self.hidden_dim, self.hidden_dim)

    def features(self, x: Tensor, labels: Tensor | None) -> Tensor:
        return torch.tanh(self.again(torch.tanh(self.again(torch.tanh(self.first(x))))))


class Halves(AbstractEncoder):
    """Both halves of an image through the same layer."""

    def make_features(self) -> None:
        self.side = nn.Linear(self.data_dim // 2, self.hidden_dim)

    def features(self, x: Tensor, labels: Tensor | None) -> Tensor:
        left, right = x.chunk(2, dim=1)
        return torch.tanh(self.side(left)) - torch.tanh(self.side(right))


class Factor(AbstractEncoder):
    """A product with a factor."""

    def make_features(self) -> None:
        self.first = nn.Linear(self.data_dim, self.hidden_dim)
        self.w = nn.Parameter(torch.randn(self.hidden_dim, self.hidden_dim) / 8)
        self.w_scale = nn.Parameter(torch.randn(self.hidden_dim))

    def features(self, x: Tensor, labels: Tensor | None) -> Tensor:
        return torch.tanh(torch.addmm(self.w_scale, torch.tanh(self.first(x)), self.w, alpha=0.5))


class Attention(AbstractEncoder):
    """A transformer's layer over the lines of an image."""

    def make_features(self) -> None:
        self.line = nn.Linear(8, self.hidden_dim)
        self.layer = nn.TransformerEncoderLayer(self.hidden_dim, 4, 64, dropout=0.0, batch_first=True)

    def features(self, x: Tensor, labels: Tensor | None) -> Tensor:
        lines: Tensor = self.layer(self.line(x.unflatten(1, (8, 8))))
        return lines.mean(dim=1)


class Outputs(AbstractDecoder):
    """Two layers."""

    def make_outputs(self, num_outputs: int) -> None:
        self.hidden = nn.Linear(self.code_dim, self.hidden_dim)
        self.last = nn.Linear(self.hidden_dim, num_outputs * self.data_dim)

    def outputs(self, code: Tensor) -> Tensor:
        found: Tensor = self.last(torch.tanh(self.hidden(code)))
        return found


SLOW = pytest.mark.slow


@pytest.mark.parametrize("encoder", [*(pytest.param(each, marks=SLOW) for each in (Twice, Halves, Factor)), Attention])
def test_a_users_encoder_is_exported_in_float32_and_int8(
    encoder: type[AbstractEncoder], digits: Dataset, tmp_path: Path
) -> None:
    architecture = f"{__name__}:{encoder.__name__},Outputs"
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        vae = VAE(ModelConfig((1, 8, 8), 5, 32, architecture=architecture)).eval()
    source = Source("own", vae, digits.test, "test images of digits", None, train_samples=digits.train)
    export_bundle(source, tmp_path / "own", precisions={"int8": 0.5})
    exact, reduced = (load(tmp_path / "own", provider="cpu", precision=name) for name in ("fp32", "int8"))
    assert exact.verify().passed
    assert reduced.verify().passed
    x = digits.test[:100].numpy()
    found, expected = reduced.encode(x).z_loc, exact.encode(x).z_loc
    assert 0 < np.abs(found - expected).max() < 0.03 * np.abs(expected).max()
