"""Bundles that were changed, damaged, or come from elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevae import MANIFEST_FILE, Bundle, BundleError, Manifest, load


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / MANIFEST_FILE).read_bytes())
    change(manifest)
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))


def test_a_manifest_survives_writing_and_reading(bundle: Path) -> None:
    content = (bundle / MANIFEST_FILE).read_bytes()
    assert Manifest.decode(content).encode() == content


def test_a_folder_without_a_manifest_is_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle: expected a folder with manifest\.json"):
        load(tmp_path)


@pytest.mark.parametrize("file", ["encoder.onnx", "decoder.onnx", "reconstruct.onnx"])
def test_one_flipped_bit_in_a_graph_is_refused(copy: Path, file: str) -> None:
    content = bytearray((copy / file).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / file).write_bytes(content)
    with pytest.raises(BundleError, match=f"{file} was changed after export"):
        load(copy)


def test_a_changed_reference_is_refused_by_verify(copy: Path) -> None:
    model = load(copy, provider="cpu")
    with (copy / "reference.npz").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(BundleError, match=r"reference\.npz was changed after export"):
        model.verify()


def test_a_missing_graph_is_named(copy: Path) -> None:
    (copy / "decoder.onnx").unlink()
    with pytest.raises(BundleError, match=r"decoder\.onnx cannot be read"):
        load(copy)


def test_a_newer_schema_is_refused_with_the_way_out(copy: Path) -> None:
    edit(copy, lambda manifest: manifest.update(schema_version=2))
    with pytest.raises(BundleError, match=r"schema version 2, this runtime reads 1; install a newer edgevae"):
        load(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.pop("model"),
        lambda manifest: manifest.pop("schema_version"),
        lambda manifest: manifest.update(unknown=1),
        lambda manifest: manifest["model"].update(z_dims=[0]),
        lambda manifest: manifest["model"].update(z_dims=[]),
        lambda manifest: manifest["model"].update(z_dims="5"),
        lambda manifest: manifest["model"].update(z_dims=[5, 2]),
        lambda manifest: manifest["model"].update(latent="hierarchical"),
        lambda manifest: manifest["model"].update(num_components=2),
        lambda manifest: manifest["model"].update(num_classes=-1),
        lambda manifest: manifest["model"].update(likelihood=None),
        lambda manifest: manifest["graphs"]["encoder"]["file"].update(file="../encoder.onnx"),
        lambda manifest: manifest["graphs"]["encoder"]["file"].update(file="/etc/passwd"),
        lambda manifest: manifest["graphs"]["encoder"]["file"].update(sha256="0"),
    ],
)
def test_a_manifest_that_does_not_fit_the_schema_is_refused(copy: Path, change: Callable[[Any], object]) -> None:
    edit(copy, change)
    with pytest.raises(BundleError, match="is not a valid manifest"):
        load(copy)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_manifest_that_is_not_a_json_object_is_refused(copy: Path, content: bytes) -> None:
    (copy / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(BundleError, match="is not a valid manifest"):
        load(copy)


@pytest.mark.parametrize(
    "change",
    [
        {"data_shape": [1, 28, 28]},
        {"z_dims": [6]},
        {"num_classes": 10},
        {"latent": "mixture", "num_components": 2},
        {"latent": "hierarchical", "z_dims": [5, 2]},
    ],
)
def test_sizes_that_contradict_the_graphs_are_refused(copy: Path, change: dict[str, Any]) -> None:
    edit(copy, lambda manifest: manifest["model"].update(change))
    with pytest.raises(BundleError, match=r"the manifest contradicts itself: .* export the model again"):
        load(copy)


@pytest.mark.parametrize("name", ["decoder", "elbo"])
def test_a_manifest_without_one_of_the_models_graphs_is_refused(copy: Path, name: str) -> None:
    edit(copy, lambda manifest: manifest["graphs"].pop(name))
    with pytest.raises(BundleError, match=r"the manifest contradicts itself: .* export the model again"):
        load(copy)


@pytest.mark.parametrize("change", [{"unit_interval": False}, {"likelihood": "normal"}, {"hidden_dim": 17}])
def test_choices_that_the_graphs_were_not_made_for_are_refused(copy: Path, change: dict[str, Any]) -> None:
    edit(copy, lambda manifest: manifest["model"].update(change))
    with pytest.raises(BundleError, match=r"reconstruct\.onnx does not fit its manifest: it was made for"):
        load(copy)


def test_swapped_graphs_are_refused(copy: Path) -> None:
    def swap(manifest: dict[str, Any]) -> None:
        graphs = manifest["graphs"]
        graphs["encoder"]["file"], graphs["decoder"]["file"] = graphs["decoder"]["file"], graphs["encoder"]["file"]

    edit(copy, swap)
    with pytest.raises(BundleError, match=r"decoder\.onnx does not fit its manifest: expected inputs"):
        load(copy).encode(np.zeros((1, 64)))


def test_a_file_that_is_not_an_onnx_graph_is_refused(copy: Path) -> None:
    import hashlib

    (copy / "encoder.onnx").write_bytes(b"nonsense")
    digest = hashlib.sha256(b"nonsense").hexdigest()
    edit(copy, lambda manifest: manifest["graphs"]["encoder"]["file"].update(sha256=digest, size_bytes=8))
    with pytest.raises(BundleError, match=r"encoder\.onnx: this is no ONNX graph"):
        load(copy).encode(np.zeros((1, 64)))


def test_a_bundle_for_pytorch_only_says_so(copy: Path) -> None:
    edit(copy, lambda manifest: manifest["graphs"].clear())
    with pytest.raises(BundleError, match=r"no ONNX graphs, only encoder\.ts.*export it again with --format onnx"):
        load(copy)


def test_a_reference_with_pickled_objects_is_refused(copy: Path) -> None:
    import hashlib

    np.savez(copy / "reference.npz", case=np.array([object()], dtype=object))
    content = (copy / "reference.npz").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    edit(copy, lambda manifest: manifest["reference"].update(sha256=digest, size_bytes=len(content)))
    with pytest.raises(BundleError, match=r"reference\.npz is damaged"):
        load(copy, provider="cpu").verify()


def test_files_are_found_beside_the_manifest_wherever_the_folder_lies(copy: Path, tmp_path: Path) -> None:
    moved = copy.rename(tmp_path / "elsewhere")
    assert load(moved, provider="cpu").verify().passed
    assert Bundle(moved).path == moved
