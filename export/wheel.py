"""A Python package (wheel) that contains a bundle and the runtime."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import io
import keyword
import re
import sys
import zipfile
from pathlib import Path

import msgspec
from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

import edgevae
from edgevae import MANIFEST_FILE, SIGNATURE_FILE, Bundle, FileEntry, Manifest

from .errors import ExportError
from .files import write_file

_OURS = "edgevae"
_NOT_RUNTIME = ("train", "export")  # packages in the same installed folder
_OUR_LICENSE = "Apache-2.0"
_RUNTIME_NEEDS = ("msgspec", "numpy", "onnxruntime")
_CARD_FILES = ("README.md", "samples.png", "traversal.png")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time of a zip file, so that the same content gives the same file
_MODE = 0o644 << 16

_INIT = '''\
"""{name} {version}: a variational autoencoder, exported by EdgeVAE. Runs with NumPy and ONNX Runtime.

    import {package}

    model = {package}.load()
{example}

`{package}.runtime` is EdgeVAE's runtime: the errors, `Noise`, `Latents` and all else.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import runtime

__version__ = "{version}"
__all__ = ["BUNDLE", "load", "runtime"]

BUNDLE = Path(__file__).parent / "bundle"
"""The bundle's folder, for `vae-run`."""


def load(
    provider: str = "auto",
    threads: int | None = None,
    *,
    providers: Sequence[runtime.ProviderOptions] | None = None,
    session_options: Any = None,
    precision: runtime.Precision = "fp32",
    public_key: str | os.PathLike[str] | bytes | None = None,
) -> runtime.{kind}:
    """Load the model; the arguments are those of `runtime.{load}` after the path."""
    return runtime.{load}(
        BUNDLE,
        provider,
        threads,
        providers=providers,
        session_options=session_options,
        precision=precision,
        public_key=public_key,
    )
'''


def check_version(version: str) -> str:
    """Return a version in its normal form, like `1.0.0`.

    Raises:
        ExportError: It is not a version of a Python package (PEP 440).
    """
    try:
        return str(Version(version))
    except InvalidVersion as error:
        raise ExportError(f"the model's version must be like 1.0.0, got {version!r}") from error


def check_license(expression: str) -> str:
    """Return a license expression in its normal form.

    Raises:
        ExportError: It is not an SPDX license expression.
    """
    try:
        return str(canonicalize_license_expression(expression))
    except InvalidLicenseExpression as error:
        raise ExportError(
            f"the model's license must be an SPDX expression like Apache-2.0 or CC-BY-SA-4.0, or LicenseRef- and a "
            f"name of your own, got {expression!r}"
        ) from error


def import_name(name: str) -> str:
    """Return the import name of a model's package: `mnist_mlp` for `mnist-mlp`.

    Raises:
        ExportError: It is not a valid name, or it is taken by Python's standard library or by an installed package.
    """
    package = re.sub(r"[-.]+", "_", name).lower()
    taken = [name for name in importlib.metadata.packages_distributions().get(package, ()) if not _is_ours(name)]
    obstacle = ""
    if not package.isidentifier() or not package.isascii() or keyword.iskeyword(package):
        obstacle = "is not a valid name for a Python package"
    elif package in sys.stdlib_module_names:
        obstacle = "is a module of Python's standard library"
    elif taken:
        obstacle = f"is the import name of the installed package {', '.join(sorted(set(taken)))}"
    if obstacle:
        raise ExportError(f"the model's name gives the package {package}, which {obstacle}; choose another --out")
    return package


def _is_ours(distribution: str) -> bool:
    """Return whether an installed distribution is a model's wheel, perhaps an older one of the same model."""
    return f"Generator: {_OURS}" in (importlib.metadata.distribution(distribution).read_text("WHEEL") or "")


def wheel_file(name: str, version: str) -> str:
    """Return the file name of a model's wheel.

    Raises:
        ExportError: `name` is not usable as the name of a package.
    """
    return f"{import_name(name)}-{version}-py3-none-any.whl"


def build_wheel(bundle: Path, folder: Path) -> Path:
    """Write the wheel of a bundle: the bundle without its files for PyTorch, and this runtime.

    The same bundle and runtime give the same file, byte for byte. A signed bundle stays signed: its manifest is
    included unchanged. The wheel's license is the model's and the runtime's, Apache-2.0; if the model states none, the
    wheel states none.

    Args:
        bundle: The bundle's folder; its manifest gives the wheel's name, version and license.
        folder: The folder to write it to; a wheel of the same name there is replaced.

    Returns:
        The wheel's path.

    Raises:
        BundleError: There is no bundle, or a file of it is missing or was changed.
        ExportError: The bundle holds no ONNX graphs; its name, version or license is not valid for a package; or its
            README.md or a picture is a symbolic link.
    """
    source = Bundle(bundle)
    manifest = source.manifest
    if not manifest.graphs:
        raise ExportError(f"{bundle} has no ONNX graphs, which a wheel needs; export it with --format onnx")
    package = import_name(manifest.name)
    _check_normal_form(manifest.version, manifest.license)
    files = {f"{package}/{name}": content for name, content in _package_files(source, package).items()}
    info = f"{package}-{manifest.version}.dist-info"
    license_text = _our_license()
    files[f"{info}/METADATA"] = _metadata(manifest, package).encode()
    files[f"{info}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: {_OURS} {importlib.metadata.version(_OURS)}\n"
        "Root-Is-Purelib: true\nTag: py3-none-any\n"
    ).encode()
    files[f"{info}/licenses/LICENSE"] = license_text
    files[f"{info}/top_level.txt"] = f"{package}\n".encode()
    record = [f"{name},sha256={_digest(content)},{len(content)}" for name, content in sorted(files.items())]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    path = folder / wheel_file(manifest.name, manifest.version)
    write_file(path, _zipped(files))
    return path


def _check_normal_form(version: str, license_: str) -> None:
    """Refuse a version or license that is not in its normal form.

    The parsers accept line breaks, which would start a new field of the wheel's metadata.

    Args:
        version: The model's version.
        license_: The model's license, or empty.

    Raises:
        ExportError: One is not valid or not in its normal form.
    """
    for what, stated, normal in (
        ("version", version, check_version(version)),
        ("license", license_, check_license(license_) if license_ else ""),
    ):
        if stated != normal:
            raise ExportError(f"the model's {what} must be written {normal!r}, got {stated!r}; export the model again")


def _package_files(source: Bundle, package: str) -> dict[str, bytes]:
    """Return the package's files by path: its `__init__`, the runtime, and the bundle."""
    manifest = msgspec.structs.replace(source.manifest, torch_files={})
    program = manifest.model.program
    init = _INIT.format(
        name=manifest.name,
        version=manifest.version,
        package=package,
        example=_example(manifest),
        kind="Model" if program is None else "Program",
        load="load" if program is None else "load_program",
    )
    files = {"__init__.py": init.encode(), "py.typed": b"", f"bundle/{MANIFEST_FILE}": manifest.encode()}
    root = Path(edgevae.__file__).parent
    for path in root.rglob("*"):
        place = path.relative_to(root)
        if place.parts[0] not in _NOT_RUNTIME and (path.suffix == ".py" or path.name == "py.typed"):
            files[f"runtime/{place.as_posix()}"] = path.read_bytes()
    entries: list[FileEntry] = [graph.file for graph in manifest.graphs.values()]
    entries += [entry for spec in manifest.precisions.values() for entry in spec.graphs.values()]
    for entry in (*entries, manifest.reference):
        files[f"bundle/{entry.file}"] = source.read(entry)
    for name in (*_CARD_FILES, SIGNATURE_FILE):
        path = source.path / name
        if path.is_symlink():  # it may point to a private file, and wheels are published
            raise ExportError(f"{path} is a symbolic link; replace it by the file itself, or remove it")
        if path.is_file():
            files[f"bundle/{name}"] = path.read_bytes()
    if f"bundle/{SIGNATURE_FILE}" in files:  # it signs these bytes
        files[f"bundle/{MANIFEST_FILE}"] = (source.path / MANIFEST_FILE).read_bytes()
    return files


def _example(manifest: Manifest) -> str:
    """Return a line that uses the model."""
    if (program := manifest.model.program) is not None:
        return f"    q = model.encode({', '.join(each.name for each in program.arguments)})  # like q[site].loc"
    example = {
        "all": "    images = model.generate(16, seed=0)  # float32, shape (16, {0})",
        "decoder": "    images = model.generate(16, seed=0)  # float32, shape (16, {0})",
        "encoder": "    posterior = model.encode(x)  # x: uint8 or float32, shape (batch, {0})",
    }[edgevae.part_of(manifest)].format(manifest.model.data_dim)
    if manifest.model.num_classes:
        return example.replace("seed=0", "seed=0, y=0").replace("encode(x)", "encode(x, y=0)")
    return example


def _metadata(manifest: Manifest, package: str) -> str:
    made_by = manifest.producers.get(_OURS, "of an unknown version")
    lines = [
        "Metadata-Version: 2.4",
        f"Name: {package}",
        f"Version: {manifest.version}",
        f"Summary: {manifest.name}, a variational autoencoder: NumPy and ONNX Runtime, without PyTorch",
        *([f"License-Expression: {_license(manifest.license)}"] if manifest.license else []),
        "License-File: LICENSE",
        *(f"Requires-Dist: {line}" for line in _requirements()),
        f"Requires-Python: {importlib.metadata.metadata(_OURS)['Requires-Python']}",
        "Description-Content-Type: text/markdown",
        "",
        f"`import {package}; model = {package}.load()`. Made by EdgeVAE {made_by}.",
        "",
        "For CUDA, install it with `--no-deps`, and `onnxruntime-gpu`, `numpy` and `msgspec` beside it: the two wheels",
        "of ONNX Runtime overwrite each other.",
        "",
    ]
    return "\n".join(lines)


def _license(of_model: str) -> str:
    """Return the license of the wheel: the model's and the runtime's."""
    if of_model == _OUR_LICENSE:
        return of_model
    return f"({of_model}) AND {_OUR_LICENSE}" if " " in of_model else f"{of_model} AND {_OUR_LICENSE}"


def _requirements() -> list[str]:
    """Return the runtime's requirements, with ONNX Runtime for the CPU, as the `edgevae` distribution states them."""
    stated = [Requirement(line) for line in importlib.metadata.requires(_OURS) or []]
    found = {
        entry.name: f"{entry.name}{entry.specifier}"
        for entry in stated
        if entry.name in _RUNTIME_NEEDS and (entry.marker is None or entry.marker.evaluate({"extra": "cpu"}))
    }
    return [found[name] for name in _RUNTIME_NEEDS]


def _our_license() -> bytes:
    files = importlib.metadata.files(_OURS) or []
    return next(Path(str(path.locate())) for path in files if path.name == "LICENSE").read_bytes()


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def _zipped(files: dict[str, bytes]) -> bytes:
    """Return a zip file that depends on the content alone: not compressed, because compressors differ."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in sorted(files.items(), key=lambda item: (".dist-info/" in item[0], item[0])):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = _MODE
            entry.create_system = 3  # Unix, wherever it is built
            archive.writestr(entry, content)
    return buffer.getvalue()
