"""From a trained VAE to a verified bundle: written whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import onnx

from edgevae import (
    MANIFEST_FILE,
    SCHEMA_VERSION,
    Bundle,
    FileEntry,
    GraphName,
    GraphSpec,
    Manifest,
    Part,
    ReducedPrecision,
    Report,
    Tolerances,
    graphs_of,
    load,
)
from edgevae.train import VAE

from .card import VaeDecoder, write_card
from .errors import VerificationError
from .lint import lint_program
from .precision import add_precisions
from .programs import Program, make_programs, model_spec
from .reference import make_reference
from .sign import SigningKey
from .source import Source
from .to_onnx import DEFAULT_OPSET, to_onnx
from .torch_formats import TORCH_PROGRAMS, TorchGraph, to_pt2, to_torchscript, verify_torch
from .wheel import check_license, check_version
from .whole import whole_bundle

Format = Literal["onnx", "torchscript", "pt2"]
FORMATS: tuple[Format, ...] = get_args(Format)

_REFERENCE_FILE = "reference.npz"
_PRODUCERS = ("edgevae", "torch", "pyro-ppl", "onnx", "onnxscript")


def export_bundle(
    source: Source,
    out: Path,
    formats: Sequence[Format] = ("onnx",),
    *,
    part: Part = "all",
    precisions: Mapping[ReducedPrecision, float] | None = None,
    opset: int = DEFAULT_OPSET,
    optimize: bool = True,
    tolerances: Tolerances | None = None,
    overwrite: bool = False,
    sign: SigningKey | None = None,
) -> tuple[Report, ...]:
    """Export a model, verify it against Pyro, and write it to the folder `out`.

    Everything is written to a hidden folder beside `out`, verified there, and put in its place in one step. Whatever
    fails, nothing of it is left, and a bundle that was there before stays.

    Args:
        source: The model.
        out: The bundle's folder.
        formats: What to write: `onnx` for the runtime, `torchscript` and `pt2` for PyTorch.
        part: `all` of the model, its `encoder` alone, which makes latents, or its `decoder` alone with the prior, which
            makes observations of them. The reference then holds what that part is verified with, and no more.
        precisions: Lower precisions to write the ONNX networks in too, and by how much each may lower the mean ELBO of
            the samples, nats a row; `LIMITS_NATS` has the usual limits.
        opset: Version of ONNX's operators.
        optimize: Whether to rewrite the ONNX graphs for speed.
        tolerances: How far the outputs may be from Pyro's; by default 1e-5, absolute and relative.
        overwrite: Whether a bundle that is already there may be replaced.
        sign: Key to sign it with, after all else; `edgevae.load(..., public_key=...)` checks that.

    Returns:
        The verifications, one a format and one a lower precision; all passed.

    Raises:
        ExportError: `out` is in the way, cannot be written, or another export to it is under way; or the version or the
            license is none.
        GraphError: The networks cannot become graphs that give the same numbers everywhere.
        PrecisionError: A lower precision loses more than it may.
        VerificationError: They became graphs that do not.
    """
    out = out.resolve()
    source = dataclasses.replace(
        source,
        version=check_version(source.version),
        license=check_license(source.license) if source.license else "",
    )
    options = _Options(formats, part, precisions or {}, opset, optimize, tolerances or Tolerances())
    with whole_bundle(out, overwrite) as folder:
        reports = _write(folder, source, options)
        if sign is not None:
            sign.sign_bundle(folder)
    return reports


class _Options(NamedTuple):
    """What `export_bundle` was asked for."""

    formats: Sequence[Format]
    part: Part
    precisions: Mapping[ReducedPrecision, float]
    opset: int
    optimize: bool
    tolerances: Tolerances


def _write(folder: Path, source: Source, options: _Options) -> tuple[Report, ...]:
    every, spec = make_programs(source.vae), model_spec(source.vae)
    programs = {name: every[name] for name in graphs_of(options.part, list(every))}
    formats = options.formats
    graphs: dict[GraphName, GraphSpec] = {}
    torch_files: dict[str, FileEntry] = {}

    def write(file: str, content: bytes) -> FileEntry:
        (folder / file).write_bytes(content)
        return FileEntry.of(file, content)

    for name, program in programs.items():
        traced = program.trace()
        lint_program(name, traced)
        if "onnx" in formats:
            model = to_onnx(name, program, traced, options.opset, spec, optimize=options.optimize)
            file = write(f"{name}.onnx", model.SerializeToString(deterministic=True))
            graphs[name] = _graph_spec(program, model, file)
        if "torchscript" in formats and name in TORCH_PROGRAMS:
            torch_files[f"{name}.ts"] = write(f"{name}.ts", to_torchscript(program))
        if "pt2" in formats and name in TORCH_PROGRAMS:
            torch_files[f"{name}.pt2"] = write(f"{name}.pt2", to_pt2(traced))

    reference = make_reference(source.vae, source.samples, source.labels)
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name=source.name,
        version=source.version,
        license=source.license,
        model=spec,
        latent_space_id=latent_space_id(source.vae),
        graphs=graphs,
        torch_files=torch_files,
        reference=write(_REFERENCE_FILE, reference.only(_used(programs)).encode()),
        tolerances=options.tolerances,
        preprocessing=source.preprocessing,
        dataset=source.dataset,
        training=dict(source.training),
        producers={name: importlib.metadata.version(name) for name in _PRODUCERS},
    )
    write(MANIFEST_FILE, manifest.encode())
    reports = tuple(_verify(folder, programs, format_name) for format_name in FORMATS if format_name in formats)
    if not all(report.passed for report in reports):
        raise VerificationError(reports)
    manifest = add_precisions(folder, manifest, options.precisions, source)
    reports += tuple(load(folder, provider="cpu", precision=name).verify() for name in manifest.precisions)
    if not all(report.passed for report in reports):
        raise VerificationError(reports)
    write_card(
        folder,
        manifest,
        reports,
        reference,
        VaeDecoder(source.vae),
        samples_note=source.samples_note,
        collapse_advice=source.collapse_advice,
    )
    return reports


def _used(programs: Mapping[GraphName, Program]) -> set[str]:
    """Names of all that goes in and out of the programs."""
    signatures = [program.signature for program in programs.values()]
    return {spec.name for signature in signatures for spec in (*signature.inputs, *signature.outputs)}


def _graph_spec(program: Program, model: onnx.ModelProto, file: FileEntry) -> GraphSpec:
    return GraphSpec(
        file=file,
        inputs=program.signature.inputs,
        outputs=program.signature.outputs,
        opset=next(entry.version for entry in model.opset_import if entry.domain == ""),
        ir_version=model.ir_version,
    )


def _verify(folder: Path, programs: Mapping[GraphName, Program], format_name: Format) -> Report:
    """Verify one format by loading what was written, as its users will."""
    if format_name == "onnx":
        return load(folder, provider="cpu").verify()
    signatures = {name: program.signature for name, program in programs.items()}
    elbo = TorchGraph(signatures["elbo"], programs["elbo"].module) if "elbo" in programs else None
    return verify_torch(Bundle(folder), format_name, signatures, elbo)


def latent_space_id(vae: VAE) -> str:
    """Return the SHA-256 of the weights: what latents of this model, and of no other, have in common."""
    digest = hashlib.sha256()
    for name, tensor in sorted(vae.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
