"""A bundle with one damaged file and hashes that are right again: it loads and runs, or there is an `EdgeVAEError`.

The first byte says which file the rest is.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import torch

from edgevae import EdgeVAEError, Manifest, Model, Reference, load
from edgevae.export import Source, export_bundle
from edgevae.train import VAE, ModelConfig
from tests.fuzz.manifest import words
from tests.fuzz.target import Target


def make(work: Path) -> Target:
    """Export models of two pixels, as small as they come, and take the files of them."""
    bundle = work / "bundle"
    if not bundle.exists():
        torch.manual_seed(0)
        vae = VAE(ModelConfig((1, 1, 2), z_dim=1, hidden_dim=2)).eval()
        export_bundle(Source("tiny", vae, torch.rand(3, 1, 1, 2), "noise", None), bundle, ("onnx",))
        keep_one_row_of_each_case(bundle)
    return target(bundle, work / "damaged")


def keep_one_row_of_each_case(bundle: Path) -> None:
    """Shorten the reference, so that a verification takes a hundredth of the time."""
    manifest = (bundle / "manifest.json").read_bytes()
    file = bundle / Manifest.decode(manifest).reference.file
    reference = Reference.decode(file.read_bytes())
    _, rows = np.unique(reference.case, return_index=True)
    short = Reference(reference.case[rows], {name: array[rows] for name, array in reference.arrays.items()}).encode()
    file.write_bytes(short)
    (bundle / "manifest.json").write_bytes(with_right_hash(manifest, file.name, short))


def target(bundle: Path, damaged: Path) -> Target:
    """Return the target of a bundle; `damaged` is where it is copied to, and changed."""
    shutil.copytree(bundle, damaged, dirs_exist_ok=True)
    names = files(bundle)
    seeds = [bytes([index]) + (bundle / name).read_bytes() for index, name in enumerate(names)]
    onnx_words = [b"Gemm", b"RandomNormal", b"Loop", b"com.microsoft", b"ai.onnx.ml", b"Constant", b"../x", b"location"]
    return Target(functools.partial(check, bundle, damaged, names), seeds, [*words(), *onnx_words])


def files(bundle: Path) -> list[str]:
    manifest = Manifest.decode((bundle / "manifest.json").read_bytes())
    return ["manifest.json", manifest.reference.file, *(graph.file.file for graph in manifest.graphs.values())]


def check(bundle: Path, damaged: Path, names: list[str], data: bytes) -> None:
    name, content = names[(data[0] if data else 0) % len(names)], data[1:]
    if name == names[0]:
        (damaged / name).write_bytes(content)
    else:
        (damaged / name).write_bytes(content)
        (damaged / names[0]).write_bytes(with_right_hash((bundle / names[0]).read_bytes(), name, content))
    try:
        with contextlib.suppress(EdgeVAEError), load(damaged, provider="cpu", threads=1) as model:
            use(model)
    finally:
        shutil.copy(bundle / name, damaged / name)


def use(model: Model) -> None:
    """Call what each kind of graph has a part in; damage may show in any of them."""
    x = np.zeros((2, *model.data_shape), np.float32)
    with contextlib.suppress(EdgeVAEError):
        assert model.encode(x).z_loc.shape == (2, model.z_dim)
    with contextlib.suppress(EdgeVAEError):
        assert model.reconstruct(x, seed=0).shape == (2, x[0].size)
    with contextlib.suppress(EdgeVAEError):
        assert model.elbo(x, seed=0).shape == (2,)
    with contextlib.suppress(EdgeVAEError):
        assert model.posterior_predictive(x, 1, seed=0).shape == (1, 2, x[0].size)
    with np.errstate(all="ignore"):
        str(model.verify())


def with_right_hash(manifest: bytes, name: str, content: bytes) -> bytes:
    """Return a manifest that says of a file what is true."""
    told = json.loads(manifest)
    entries = [told["reference"], *(graph["file"] for graph in told["graphs"].values())]
    entry = next(entry for entry in entries if entry["file"] == name)
    entry.update(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    return json.dumps(told).encode()
