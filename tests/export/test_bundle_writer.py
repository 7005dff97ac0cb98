"""Bundles: what is in them, and that they are written whole or not at all."""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from edgevae import DatasetSpec, Manifest, Tolerances, load
from edgevae.export import (
    FORMATS,
    ExportError,
    GraphError,
    Source,
    VerificationError,
    export_bundle,
    latent_space_id,
)
from edgevae.export import (
    bundle_writer as _bundle_writer,
)
from edgevae.export.to_onnx import to_onnx
from edgevae.train import VAE


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_bundle_of_all_formats_holds_the_files_of_the_design(bundle: Path) -> None:
    assert sorted(path.name for path in bundle.iterdir()) == [
        "README.md",
        "decoder.onnx",
        "decoder.pt2",
        "decoder.ts",
        "elbo.onnx",
        "encoder.onnx",
        "encoder.pt2",
        "encoder.ts",
        "manifest.json",
        "observation.onnx",
        "reconstruct.onnx",
        "reference.npz",
        "samples.png",
        "traversal.png",
    ]


def test_the_manifest_describes_the_graphs_as_they_are(bundle: Path) -> None:
    manifest = load(bundle, provider="cpu").manifest
    assert set(manifest.graphs) == {"encoder", "decoder", "reconstruct", "elbo", "observation"}
    for name, spec in manifest.graphs.items():
        graph = onnx.load(bundle / spec.file.file)
        assert spec.file.size_bytes == (bundle / spec.file.file).stat().st_size
        assert graph.ir_version == spec.ir_version
        assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", spec.opset)]
        for tensors, values in ((spec.inputs, graph.graph.input), (spec.outputs, graph.graph.output)):
            assert [tensor.name for tensor in tensors] == [value.name for value in values], name
            for tensor, value in zip(tensors, values, strict=True):
                sizes = tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim)
                assert sizes == tensor.shape
    assert set(manifest.torch_files) == {"encoder.ts", "decoder.ts", "encoder.pt2", "decoder.pt2"}
    assert manifest.producers["torch"] == importlib.metadata.version("torch")


def test_exporting_twice_gives_the_same_graphs_byte_for_byte(source: Source, bundle: Path, tmp_path: Path) -> None:
    export_bundle(source, tmp_path / "small", ["onnx"])
    for path in (tmp_path / "small").iterdir():
        if path.name not in {"manifest.json", "README.md"}:  # these two name the formats
            assert path.read_bytes() == (bundle / path.name).read_bytes(), path.name


def test_nothing_in_a_bundle_names_a_path_of_this_machine(bundle: Path) -> None:
    here, home = str(Path(__file__).parent.parent.parent).encode(), str(Path.home()).encode()
    for name, content in tree(bundle).items():
        assert here not in content, name
        assert b"/lib/python" not in content, name
        assert home + b"/" not in content, name


def test_the_reports_cover_every_format(source: Source, tmp_path: Path) -> None:
    reports = export_bundle(source, tmp_path / "small", FORMATS)
    assert [report.format for report in reports] == ["onnx", "torchscript", "pt2"]
    assert all(report.passed for report in reports)
    card = (tmp_path / "small" / "README.md").read_text()
    assert all(str(report) in card for report in reports)


def test_the_card_says_how_good_the_model_is(source: Source, tmp_path: Path) -> None:
    spec = DatasetSpec(
        name="digits", num_train=1437, num_test=360, test_elbo_nats=-25.125, num_particles=10, binarize="none"
    )
    export_bundle(dataclasses.replace(source, dataset=spec), tmp_path / "small", ["onnx"])
    card = (tmp_path / "small" / "README.md").read_text()
    assert "| test ELBO | -25.12 nats an image, 360 images, 10 particles |" in card
    assert load(tmp_path / "small").manifest.dataset == spec


def test_a_perturbed_weight_in_the_graph_leaves_no_bundle(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def perturbed(*arguments: object, **options: object) -> onnx.ModelProto:
        model = to_onnx(*arguments, **options)  # type: ignore[arg-type]  # passed through
        for weight in model.graph.initializer:
            if weight.name.endswith("fc1.weight"):
                values = onnx.numpy_helper.to_array(weight) * np.float32(1.001)
                weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        return model

    monkeypatch.setattr(_bundle_writer, "to_onnx", perturbed)
    with pytest.raises(VerificationError, match="no bundle was written: onnx encoder z_loc is off by") as caught:
        export_bundle(source, tmp_path / "models" / "small", FORMATS)
    assert [report.passed for report in caught.value.reports] == [False, True, True]
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_whose_numbers_are_not_finite_leaves_no_bundle(source: Source, tmp_path: Path, value: float) -> None:
    vae = copy.deepcopy(source.vae)
    with torch.no_grad():
        vae.encoder.fc21.bias[0] = value
    with pytest.raises(ExportError, match="Pyro's own z_loc holds NaN or infinity"):
        export_bundle(dataclasses.replace(source, vae=vae), tmp_path / "models" / "small", ["torchscript"])
    assert list((tmp_path / "models").iterdir()) == []


def test_a_tolerance_that_cannot_hold_fails_the_export(source: Source, tmp_path: Path) -> None:
    with pytest.raises(VerificationError):
        export_bundle(source, tmp_path / "small", ["onnx"], tolerances=Tolerances(atol=0, rtol=0))
    assert not (tmp_path / "small").exists()


def test_a_model_with_dropout_is_refused_by_name(source: Source, tmp_path: Path) -> None:
    class Noisy(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.dropout(x, 0.5, training=True)

    vae = copy.deepcopy(source.vae)
    vae.encoder.softplus = Noisy()
    with pytest.raises(GraphError, match=r"encoder: aten\.dropout"):
        export_bundle(dataclasses.replace(source, vae=vae), tmp_path / "small", ["onnx"])


def test_a_bundle_is_not_overwritten_unless_asked_to(source: Source, tmp_path: Path) -> None:
    out = tmp_path / "small"
    export_bundle(source, out, ["torchscript"])
    before = tree(out)
    with pytest.raises(ExportError, match="already holds a bundle; choose another --out, or give --force"):
        export_bundle(source, out, ["onnx"])
    assert tree(out) == before
    with pytest.raises(VerificationError):
        export_bundle(source, out, ["onnx"], tolerances=Tolerances(atol=0, rtol=0), overwrite=True)
    assert tree(out) == before  # a failed export leaves the old bundle as it was
    export_bundle(source, out, ["onnx"], overwrite=True)
    assert (out / "encoder.onnx").exists()
    assert not (out / "encoder.ts").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_an_interruption_while_the_new_bundle_takes_its_place_keeps_the_old_one(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_first: Path, _second: Path) -> bool:
        raise KeyboardInterrupt

    out = tmp_path / "small"
    export_bundle(source, out, ["torchscript"])
    before = tree(tmp_path)
    monkeypatch.setattr("edgevae.train.whole._exchanged", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_bundle(source, out, ["torchscript"], overwrite=True)
    assert tree(tmp_path) == before


def test_a_folder_that_is_no_bundle_is_never_overwritten(source: Source, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("precious")
    with pytest.raises(ExportError, match="is there and is not a bundle"):
        export_bundle(source, tmp_path, ["onnx"], overwrite=True)
    assert (tmp_path / "precious.txt").read_text() == "precious"


def test_another_opset_can_be_chosen(source: Source, tmp_path: Path) -> None:
    export_bundle(source, tmp_path / "small", ["onnx"], opset=18)
    manifest = Manifest.decode((tmp_path / "small" / "manifest.json").read_bytes())
    assert {spec.opset for spec in manifest.graphs.values()} == {18}


def test_few_samples_still_verify_at_every_batch_size(source: Source, tmp_path: Path) -> None:
    few = dataclasses.replace(source, samples=source.samples[:3])
    (report,) = export_bundle(few, tmp_path / "small", ["onnx"])
    assert report.rows == 256


def test_the_latent_space_is_named_by_the_weights(vae: VAE) -> None:
    other = copy.deepcopy(vae)
    assert latent_space_id(other) == latent_space_id(vae)
    with torch.no_grad():
        other.decoder.get_parameter("fc1.bias")[0] += 1e-6
    assert latent_space_id(other) != latent_space_id(vae)


def test_the_manifest_is_plain_json(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    assert manifest["model"] == {
        "architecture": "mlp",
        "likelihood": "bernoulli",
        "latent": "normal",
        "data_shape": [1, 8, 8],
        "z_dims": [5],
        "hidden_dim": 16,
        "num_classes": 0,
        "num_components": 0,
        "unit_interval": True,
    }
