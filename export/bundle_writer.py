"""From a trained VAE to a verified bundle."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import onnx
from numpy.typing import ArrayLike
from torch import Tensor

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
    RunnableGraph,
    Tolerances,
    graphs_of,
)
from edgevae.train import TraceError
from edgevae.train.conversion import DEFAULT_OPSET
from edgevae.train.programs import Program
from edgevae.verify import rounding_names

from .errors import ExportError, GraphError, VerificationError
from .files import bundle_folder
from .opening import open_program
from .precision import add_precisions
from .program_sites import SiteProgram
from .sign import SigningKey
from .source import SiteSource, Source, given_arguments, source_of_program, source_of_sites
from .to_onnx import opset_of, to_onnx
from .torch_formats import TORCH_PROGRAMS, TorchGraph, to_pt2, to_torchscript, verify_torch
from .wheel import check_license, check_version

Format = Literal["onnx", "torchscript", "pt2"]
FORMATS: tuple[Format, ...] = get_args(Format)

_REFERENCE_FILE = "reference.npz"
_PRODUCERS = ("edgevae", "torch", "pyro-ppl", "onnx", "onnxscript")


def export_bundle(
    source: Source | SiteSource,
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

    The bundle is written to a hidden folder beside `out`, verified there, and renamed to `out`. If anything fails,
    nothing is left of it, and an existing bundle stays.

    Args:
        source: The model.
        out: The bundle's folder.
        formats: What to write: `onnx` for the runtime, `torchscript` and `pt2` for PyTorch.
        part: `all`, the `encoder` alone, or the `decoder` alone with the prior. The reference holds only what verifies
            that part.
        precisions: Lower precisions of the ONNX networks to write too, and how much mean ELBO each may lose, nats a
            row; `LIMITS_NATS` has the defaults.
        opset: ONNX opset version.
        optimize: Whether to rewrite the ONNX graphs for speed.
        tolerances: How much outputs may differ from Pyro's; by default 1e-5, absolute and relative.
        overwrite: Whether to replace an existing bundle.
        sign: Key to sign the finished bundle with; `edgevae.load(..., public_key=...)` checks the signature.

    Returns:
        The verifications, one a format and one a lower precision; all passed.

    Raises:
        ExportError: `out` is not a bundle, cannot be written, or is being written by another export; or the version or
            license is not valid.
        GraphError: The networks cannot be exported as graphs that give the same numbers everywhere.
        PrecisionError: A lower precision loses more than its limit.
        VerificationError: A graph's outputs differ from Pyro's by more than the tolerances.
    """
    out = out.resolve()
    source = dataclasses.replace(
        source,
        version=check_version(source.version),
        license=check_license(source.license) if source.license else "",
    )
    with bundle_folder(out, overwrite) as folder:
        reports = write_bundle(
            folder,
            source,
            formats,
            part=part,
            precisions=precisions or {},
            opset=opset,
            optimize=optimize,
            tolerances=tolerances or Tolerances(),
        )
        if sign is not None:
            sign.sign_bundle(folder)
    return reports


def export_program(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    example: Mapping[str, ArrayLike | Tensor],
    out: str | os.PathLike[str],
    name: str | None = None,
    *,
    data: Mapping[str, ArrayLike | Tensor] | None = None,
    static: Collection[str] = (),
    data_shape: tuple[int, ...] | None = None,
    formats: Sequence[Format] = ("onnx",),
    tolerances: Tolerances | None = None,
    overwrite: bool = False,
) -> tuple[Report, ...]:
    """Export a Pyro program of your own, as it is.

    With one normal latent and one observed site, `edgevae.load` loads the bundle as it loads any VAE; with other sites,
    `edgevae.load_program` loads it.

    The graphs are derived from the program and verified against it, on the rows of `data`. The quantiles of their ELBO
    give the threshold of `is_anomaly`, so give some hundred rows that the training did not see.

    Args:
        model: The model, trained, on the CPU.
        guide: The guide, which takes the same arguments.
        example: Arguments by the names that the model gives them, the batch first: the data, and labels where the
            program takes them. Numbers in double precision become float32.
        out: The bundle's folder.
        name: The model's name; by default that of the folder.
        data: Arguments like those of the example, with more rows; by default the example.
        static: Names of arguments that have no batch axis. They are constants.
        data_shape: Shape of one observation for users of the bundle, like `(1, 28, 28)` where the program takes 784
            values; by default what the program takes.
        formats: What to write: `onnx` for the runtime, `torchscript` and `pt2` for PyTorch.
        tolerances: As for `export_bundle`.
        overwrite: Whether to replace an existing bundle.

    Returns:
        The verifications, one a format; all passed.

    Raises:
        ExportError: As for `export_bundle`.
        GraphError: The program cannot be exported; the message names the line, and what to do.
        VerificationError: A graph's outputs differ from Pyro's by more than the tolerances.
    """
    out = Path(out).resolve()
    exported = open_program(model, guide, example, static=static, data_shape=data_shape)
    name = name or out.name
    given = None if data is None else given_arguments(exported.program, data)
    source: Source | SiteSource
    if isinstance(exported, SiteProgram):
        source = source_of_sites(exported, name, given, "the example" if given is None else "the data")
    else:
        source = source_of_program(exported, name, None if given is None else exported.dataset(given))
    return export_bundle(source, out, formats, tolerances=tolerances, overwrite=overwrite)


def write_bundle(
    folder: Path,
    source: Source | SiteSource,
    formats: Sequence[Format],
    *,
    part: Part,
    precisions: Mapping[ReducedPrecision, float],
    opset: int,
    optimize: bool,
    tolerances: Tolerances,
) -> tuple[Report, ...]:
    """Write a bundle's files to an existing folder and verify them; arguments and errors are as for `export_bundle`."""
    exported = source.model
    if part not in source.parts:
        raise ExportError(f"a program that is used by its sites is exported whole; leave out --graphs {part}")
    every, spec = exported.programs, exported.spec
    programs = {name: every[name] for name in graphs_of(part, list(every))}
    graphs: dict[GraphName, GraphSpec] = {}
    torch_files: dict[str, FileEntry] = {}

    def write(file: str, content: bytes) -> FileEntry:
        (folder / file).write_bytes(content)
        return FileEntry.of(file, content)

    for name, program in programs.items():
        with _named(name):
            traced = program.trace()
            if "onnx" in formats:
                model = to_onnx(name, program, traced, opset, spec, optimize=optimize)
                file = write(f"{name}.onnx", model.SerializeToString(deterministic=True))
                graphs[name] = _graph_spec(program, model, file)
            if "torchscript" in formats and name in TORCH_PROGRAMS:
                torch_files[f"{name}.ts"] = write(f"{name}.ts", to_torchscript(program))
            if "pt2" in formats and name in TORCH_PROGRAMS:
                torch_files[f"{name}.pt2"] = write(f"{name}.pt2", to_pt2(traced))

    reference = source.reference()
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name=source.name,
        version=source.version,
        license=source.license,
        model=spec,
        latent_space_id=exported.latent_space_id,
        graphs=graphs,
        torch_files=torch_files,
        reference=write(_REFERENCE_FILE, reference.only(_used(programs)).encode()),
        tolerances=tolerances,
        preprocessing=source.preprocessing,
        dataset=source.dataset,
        training=dict(source.training),
        producers={name: importlib.metadata.version(name) for name in _PRODUCERS},
    )
    write(MANIFEST_FILE, manifest.encode())
    reports = tuple(_verify(folder, source, programs, format_name) for format_name in FORMATS if format_name in formats)
    if not all(report.passed for report in reports):
        raise VerificationError(reports)
    manifest = add_precisions(folder, manifest, precisions, source)
    reports += tuple(source.verify(folder, name) for name in manifest.precisions)
    if not all(report.passed for report in reports):
        raise VerificationError(reports)
    source.write_card(folder, manifest, reports, reference)
    return reports


@contextlib.contextmanager
def _named(name: GraphName) -> Iterator[None]:
    """Say which graph could not be made."""
    try:
        yield
    except TraceError as error:
        raise GraphError(f"{name} cannot be exported: {error}") from error


def _used(programs: Mapping[GraphName, Program]) -> set[str]:
    """Return the names of all inputs and outputs of the programs, and of the roundings."""
    signatures = {name: program.signature for name, program in programs.items()}
    used = {spec.name for signature in signatures.values() for spec in (*signature.inputs, *signature.outputs)}
    return used.union(rounding_names({name: signature.outputs for name, signature in signatures.items()}))


def _graph_spec(program: Program, model: onnx.ModelProto, file: FileEntry) -> GraphSpec:
    return GraphSpec(
        file=file,
        inputs=program.signature.inputs,
        outputs=program.signature.outputs,
        opset=opset_of(model),
        ir_version=model.ir_version,
    )


def _verify(
    folder: Path, source: Source | SiteSource, programs: Mapping[GraphName, Program], format_name: Format
) -> Report:
    """Verify one format by loading the written files, as users will."""
    if format_name == "onnx":
        return source.verify(folder)
    signatures = {name: program.signature for name, program in programs.items()}
    others: dict[GraphName, RunnableGraph] = {
        name: TorchGraph(signatures[name], program.module)
        for name, program in programs.items()
        if name in ("sample", "elbo")
    }
    return verify_torch(Bundle(folder), format_name, signatures, others)
