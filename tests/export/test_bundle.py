"""Bundles: what they hold, of the whole model or a part, and that they are written completely or not at all."""

from __future__ import annotations

import copy
import dataclasses
import importlib.metadata
import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam  # type: ignore[attr-defined]  # Pyro makes its optimizers at import
from torch import Tensor

from edgevae import Bundle, BundleError, InputError, Latents, Manifest, Model, Reference, Report, Tolerances, load
from edgevae.export import (
    FORMATS,
    ExportError,
    GraphError,
    Source,
    VerificationError,
    export_bundle,
    latent_space_id,
    make_reference,
)
from edgevae.export.to_onnx import to_onnx
from edgevae.train import LIKELIHOODS, VAE, Dataset, ModelConfig, elbo_of_each, elbo_terms


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


def test_the_reports_cover_every_format(reports: tuple[Report, ...]) -> None:
    assert [report.format for report in reports] == ["onnx", "torchscript", "pt2"]
    assert all(report.passed for report in reports)


def perturbed(*arguments: object, **options: object) -> onnx.ModelProto:
    """`to_onnx`, with weights that are off by a thousandth."""
    model = to_onnx(*arguments, **options)  # type: ignore[arg-type]  # passed through
    for weight in model.graph.initializer:
        if weight.name.endswith("fc1.weight"):
            values = onnx.numpy_helper.to_array(weight) * np.float32(1.001)
            weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    return model


def test_a_perturbed_weight_in_the_graph_leaves_no_bundle(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgevae.export.bundle_writer.to_onnx", perturbed)
    with pytest.raises(VerificationError, match="no bundle was written: onnx encoder z_loc is off by") as caught:
        export_bundle(source, tmp_path / "models" / "small", FORMATS, part="encoder")
    assert [report.passed for report in caught.value.reports] == [False, True, True]
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_whose_numbers_are_not_finite_leaves_no_bundle(
    source: Source, vae: VAE, tmp_path: Path, value: float
) -> None:
    vae = copy.deepcopy(vae)
    with torch.no_grad():
        vae.encoder.fc21.bias[0] = value
    with pytest.raises(ExportError, match=r"the weights encoder\.fc21\.bias hold NaN or infinity; train again"):
        export_bundle(dataclasses.replace(source, vae=vae), tmp_path / "models" / "small", ["torchscript"])
    assert list((tmp_path / "models").iterdir()) == []


def test_a_tolerance_that_cannot_hold_fails_the_export(source: Source, tmp_path: Path) -> None:
    with pytest.raises(VerificationError):
        export_bundle(source, tmp_path / "small", ["onnx"], tolerances=Tolerances(atol=0, rtol=0))
    assert not (tmp_path / "small").exists()


def test_a_model_with_dropout_is_refused_by_name(source: Source, vae: VAE, tmp_path: Path) -> None:
    class Noisy(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.dropout(x, 0.5, training=True)

    vae = copy.deepcopy(vae)
    vae.encoder.softplus = Noisy()
    with pytest.raises(GraphError, match=r"encoder cannot be exported: line \d+ of test_.* aten\.dropout in training"):
        export_bundle(dataclasses.replace(source, vae=vae), tmp_path / "small", ["onnx"])


def test_a_bundle_is_not_overwritten_unless_asked_to(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "small"
    export_bundle(source, out, ["torchscript"], part="encoder")
    before = tree(out)
    with pytest.raises(ExportError, match="already holds a bundle; choose another --out, or give --force"):
        export_bundle(source, out, ["onnx"])
    assert tree(out) == before
    with monkeypatch.context() as patch:
        patch.setattr("edgevae.export.bundle_writer.to_onnx", perturbed)
        with pytest.raises(VerificationError):
            export_bundle(source, out, part="encoder", overwrite=True)
    assert tree(out) == before  # a failed export leaves the old bundle as it was
    export_bundle(source, out, ["onnx"], part="encoder", overwrite=True)
    assert (out / "encoder.onnx").exists()
    assert not (out / "encoder.ts").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_a_folder_that_is_not_a_bundle_is_never_overwritten(source: Source, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("precious")
    with pytest.raises(ExportError, match="exists and is not a bundle"):
        export_bundle(source, tmp_path, ["onnx"], overwrite=True)
    assert (tmp_path / "precious.txt").read_text() == "precious"


def test_another_opset_can_be_chosen(source: Source, tmp_path: Path) -> None:
    export_bundle(source, tmp_path / "small", ["onnx"], part="encoder", opset=18)
    manifest = Manifest.decode((tmp_path / "small" / "manifest.json").read_bytes())
    assert {spec.opset for spec in manifest.graphs.values()} == {18}


def test_few_samples_still_verify_at_every_batch_size(source: Source, tmp_path: Path) -> None:
    few = dataclasses.replace(source, samples=source.samples[:3])
    (report,) = export_bundle(few, tmp_path / "small", ["onnx"], part="encoder")
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


# Files for PyTorch


def load_ts(path: Path) -> Callable[..., Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.load(path)


def load_pt2(path: Path) -> Callable[..., Any]:
    return torch.export.load(path).module()


@pytest.mark.parametrize(("suffix", "load"), [(".ts", load_ts), (".pt2", load_pt2)])
@pytest.mark.parametrize("batch", [1, 2, 7, 256])
def test_the_programs_give_the_networks_outputs_at_every_batch_size(
    bundle: Path, vae: VAE, digits: Dataset, suffix: str, load: Callable[[Path], Callable[..., Any]], batch: int
) -> None:
    x = digits.train[:batch].flatten(1)
    with torch.no_grad():
        expected = vae.encoder(x)
        found = load(bundle / f"encoder{suffix}")(x)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(load(bundle / f"decoder{suffix}")(expected[0]), vae.decoder(expected[0]))


def test_torchscript_holds_no_source_positions(bundle: Path) -> None:
    for name in ("encoder.ts", "decoder.ts"):
        with zipfile.ZipFile(bundle / name) as archive:
            assert not [entry for entry in archive.namelist() if entry.endswith(".debug_pkl")]


# A part of the model


@pytest.fixture(scope="module")
def parts(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle of the encoder and one of the decoder."""
    folder = tmp_path_factory.mktemp("parts")
    export_bundle(source, folder / "encoder", ["onnx", "torchscript"], part="encoder")
    export_bundle(source, folder / "decoder", part="decoder")
    return folder


@pytest.fixture(scope="module")
def halves(parts: Path) -> tuple[Model, Model]:
    return load(parts / "encoder", provider="cpu"), load(parts / "decoder", provider="cpu")


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def arrays(folder: Path) -> set[str]:
    """The names of the arrays in a bundle's reference."""
    return set(Reference.of(Bundle(folder)).arrays)


def test_separate_encoder_and_decoder_give_the_whole_models_numbers(
    halves: tuple[Model, Model], model: Model, digits: Dataset, tmp_path: Path
) -> None:
    encoder, decoder = halves
    x = digits.test[:20].numpy()
    z = encoder.encode(x).sample(seed=3)
    z.save(tmp_path / "latents.npz")
    sent = Latents.load(tmp_path / "latents.npz")
    np.testing.assert_array_equal(decoder.decode(sent), model.reconstruct(x, seed=3))
    np.testing.assert_array_equal(decoder.generate(5, seed=0), model.generate(5, seed=0))
    np.testing.assert_array_equal(encoder.active_units(x), model.active_units(x))
    assert encoder.latent_space_id == decoder.latent_space_id == model.latent_space_id


def test_each_part_holds_its_own_files_and_reference_and_verifies(halves: tuple[Model, Model], parts: Path) -> None:
    shared = {"manifest.json", "reference.npz", "README.md", "samples.png", "traversal.png"}
    assert files(parts / "encoder") == shared | {"encoder.onnx", "encoder.ts"}
    assert files(parts / "decoder") == shared | {"decoder.onnx"}
    roundings = {"rounding.encoder.z_loc", "rounding.encoder.z_scale", "rounding.model.kl_nats"}
    assert arrays(parts / "encoder") == {"x", "z_loc", "z_scale"} | roundings
    assert arrays(parts / "decoder") == {"z", "loc_img", "rounding.decoder.loc_img"}
    reports = [part.verify() for part in halves]
    assert all(report.passed for report in reports)
    assert [[check.output for check in report.checks] for report in reports] == [
        ["z_loc", "z_scale", "KL(q_pyro ‖ q_onnx) nats"],
        ["loc_img"],
    ]
    assert "the encoder alone" in (parts / "encoder" / "README.md").read_text(encoding="utf-8")


def test_what_a_part_cannot_do_is_an_error_that_says_why(halves: tuple[Model, Model], digits: Dataset) -> None:
    encoder, decoder = halves
    x = digits.test[:2].numpy()
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: encoder.decode(np.zeros((1, 5))), "encoder, and this needs its graph decoder"),
        (lambda: encoder.generate(1, seed=0), "encoder, and this needs its graph decoder"),
        (lambda: encoder.reconstruct(x), "encoder, and this needs its graph reconstruct"),
        (lambda: encoder.score(x), "encoder, and this needs its graph decoder"),
        (lambda: decoder.encode(x), "decoder, and this needs its graph encoder"),
        (lambda: decoder.reconstruct(x), "decoder, and this needs its graph reconstruct"),
        (lambda: decoder.interpolate(x, x, 3), "decoder, and this needs its graph encoder"),
        (lambda: decoder.posterior_predictive(x, 1, seed=0), "decoder, and this needs its graph encoder"),
    ]
    for call, message in calls:
        with pytest.raises(BundleError, match=f"holds only the model's {message}; take a bundle .* --graphs all"):
            call()


@pytest.mark.slow
@pytest.mark.parametrize("latent", ["hierarchical", "mixture"])
def test_a_decoder_alone_brings_its_prior(latent: str, digits: Dataset, tmp_path: Path) -> None:
    choices = {"upper_dims": (2,)} if latent == "hierarchical" else {"components": 3}
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        vae = VAE(ModelConfig((1, 8, 8), 3, 8, latent=latent, **choices)).eval()
    source = Source("small", vae, digits.test, "test images of digits", None)
    for part in ("all", "decoder"):
        export_bundle(source, tmp_path / part, part=part)
    whole, decoder = (load(tmp_path / part, provider="cpu") for part in ("all", "decoder"))
    assert set(decoder.manifest.graphs) == {"decoder", "prior"}
    assert decoder.verify().passed
    np.testing.assert_array_equal(decoder.generate(7, seed=2), whole.generate(7, seed=2))


def test_latents_keep_their_space_in_files(model: Model, digits: Dataset, tmp_path: Path) -> None:
    z = model.encode(digits.test[:3].numpy()).z_loc
    z.save(tmp_path / "z.latents")
    found = Latents.load(tmp_path / "z.latents")
    assert found.latent_space_id == z.latent_space_id == model.latent_space_id
    np.testing.assert_array_equal(found, z)
    Latents.of(np.asarray(z), "another").save(tmp_path / "z.latents")
    with pytest.raises(InputError, match=f"z is of latent space another, this model's is {model.latent_space_id[:16]}"):
        model.decode(Latents.load(tmp_path / "z.latents"))


def test_files_without_latents_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros(3))
    with pytest.raises(InputError, match=r"must be an \.npz file with an array z or z_loc"):
        Latents.load(tmp_path / "x.npz")
    np.save(tmp_path / "z.npy", np.zeros((1, 5)))
    with pytest.raises(InputError, match=r"must be an \.npz file with an array z or z_loc"):
        Latents.load(tmp_path / "z.npy")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(InputError, match="cannot be read"):
        Latents.load(tmp_path / "broken.npz")


# The reference


def test_the_rows_are_samples_the_lowest_elbos_and_the_ends_of_each_column(vae: VAE, digits: Dataset) -> None:
    reference = make_reference(vae, digits.test)
    assert list(reference.case) == ["sample"] * 238 + ["outlier"] * 16 + ["lowest", "highest"]
    flat = digits.test.flatten(1)
    order = elbo_of_each(vae, digits.test).argsort()
    others = order[16:].sort().values
    np.testing.assert_array_equal(reference["x"][:238], flat[others[:238]].numpy())
    np.testing.assert_array_equal(reference["x"][238:254], flat[order[:16]].numpy())
    np.testing.assert_array_equal(reference["x"][254], flat.amin(0).numpy())
    np.testing.assert_array_equal(reference["x"][255], flat.amax(0).numpy())
    z = reference["z_loc"] + reference["z_scale"] * reference["eps"]
    np.testing.assert_allclose(reference["z"], z, atol=1e-6)


def test_the_reference_is_that_of_evaluation_whatever_mode_the_model_is_in(vae: VAE, digits: Dataset) -> None:
    expected = make_reference(vae, digits.test)
    training = copy.deepcopy(vae).train()
    found = make_reference(training, digits.test)
    assert training.training
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("likelihood", list(LIKELIHOODS))
def test_the_terms_add_up_to_the_elbo_that_svi_trains_on(digits: Dataset, likelihood: str) -> None:
    x = digits.test[:20]
    with pyro.get_param_store().scope(), torch.random.fork_rng([]), torch.no_grad():
        vae = VAE(ModelConfig((1, 8, 8), z_dim=5, hidden_dim=16, likelihood=likelihood))
        torch.manual_seed(3)
        loss = SVI(vae.model, vae.guide, Adam({}), Trace_ELBO()).evaluate_loss(x)
        torch.manual_seed(3)
        terms = elbo_terms(vae, x, [torch.randn(20, 5)])
    assert terms.log_px_z.shape == (20,)
    assert float(terms.elbo.sum()) == pytest.approx(-loss, rel=1e-5)
