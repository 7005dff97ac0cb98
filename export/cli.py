"""`vae-export`."""

from __future__ import annotations

from . import requirements  # noqa: F401 - checks, before anything else is imported

# isort: split

import dataclasses
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
import onnx
from torch import Tensor

from edgevae import PARTS, Bundle, EdgeVAEError, Part, Precision, Report, Tolerances
from edgevae.cli.sections import SectionedCommand, SectionOption
from edgevae.train import DATASET_NAMES, ConfigError, DataConfig, TrainError, newest_run
from edgevae.train.cli import Numbers, Sizes
from edgevae.train.conversion import DEFAULT_OPSET
from edgevae.train.program import LoadedProgram, check_program, load_program

from .bundle_writer import FORMATS, Format, export_bundle
from .errors import ExportError, VerificationError
from .files import check_writable
from .loading import load_weights, read_example
from .opening import open_program
from .precision import LIMITS_NATS, left_in_float32
from .program_sites import SiteProgram
from .sign import SigningKey
from .source import (
    SiteSource,
    Source,
    dataset_of,
    read_data,
    source_of_program,
    source_of_run,
    source_of_sites,
    source_of_weights,
)
from .state_dict import REFERENCE_NAMES
from .weights import Weights, read_weights
from .wheel import build_wheel, check_license, check_version, wheel_file

_Function = TypeVar("_Function", bound=Callable[..., Any])

_RUNS = Path("runs")
_MODELS = Path("models")
_ALL, _ONNX, _WHEEL = "all", "onnx", "wheel"
_PASSPHRASE = "EDGEVAE_SIGN_PASSPHRASE"  # noqa: S105 - the name of a variable of the environment


def _option(section: str, *names: str, **settings: Any) -> Callable[[_Function], _Function]:
    return click.option(*names, cls=SectionOption, section=section, **settings)


@click.command(cls=SectionedCommand, context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.argument("run", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@_option(
    "Formats",
    "--format",
    "formats",
    multiple=True,
    type=click.Choice([*FORMATS, _WHEEL, _ALL]),
    default=(_ONNX,),
    help="What to write; can be given several times. all is onnx, torchscript and pt2. wheel is onnx, and beside the "
    "bundle a Python package that contains it and the runtime.",
)
@_option(
    "Formats",
    "--graphs",
    "part",
    type=click.Choice(PARTS),
    default=_ALL,
    help="The whole model, its encoder (observations to latents), or its decoder (latents to observations).",
)
@_option("Output", "--out", type=click.Path(path_type=Path), help="The bundle's folder.  [default: models/<name>]")
@_option("Output", "--force", is_flag=True, help="Replace the bundle that --out already holds, and its wheel.")
@_option(
    "Precision",
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(get_args(Precision)),
    default=("fp32",),
    help="Precision of the networks' ONNX graphs; can be given several times. fp32 is always written.",
)
@_option(
    "Precision",
    "--max-elbo-lost",
    type=click.FloatRange(min=0),
    help="How much of the mean ELBO a lower precision may lose, nats a row.  "
    f"[default: {', '.join(f'{limit} for {name}' for name, limit in LIMITS_NATS.items())}]",
)
@_option("Release", "--model-version", default="1.0.0", help="The model's version.")
@_option("Release", "--license", "license_", default="", help="The model's license: an SPDX expression, Apache-2.0.")
@_option(
    "Release",
    "--sign",
    "sign_with",
    metavar="KEY",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Sign the bundle with this private key (Ed25519, PEM). The passphrase of an encrypted key is read from "
    f"{_PASSPHRASE}, or asked for.",
)
@_option(
    "ONNX graphs",
    "--opset",
    type=click.IntRange(18, onnx.defs.onnx_opset_version()),
    default=DEFAULT_OPSET,
    help="ONNX opset version.",
)
@_option(
    "ONNX graphs",
    "--no-optimize",
    is_flag=True,
    help="Skip the graph rewrites for speed. Those for accuracy are always applied.",
)
@_option(
    "Verification",
    "--atol",
    type=click.FloatRange(min=0),
    default=Tolerances().atol,
    help="Absolute tolerance of each output of a graph; of a sum, for each value summed; of data above 1, in "
    "parts of the column's largest value. KL and ELBO have limits of their own; float32's rounding is always allowed.",
)
@_option(
    "Verification",
    "--rtol",
    type=click.FloatRange(min=0),
    default=Tolerances().rtol,
    help="Relative tolerance of each output of a graph, beside the absolute one.",
)
@_option(
    "A Pyro program of your own",
    "--program",
    metavar="PLACE",
    help="Export a Pyro program as it is, instead of a run: FILE.py:NAME or module:NAME. NAME is an object with model "
    "and guide, a class or function that makes one without arguments, or a pair (model, guide).",
)
@_option(
    "A Pyro program of your own",
    "--weights",
    "program_weights",
    type=click.Path(exists=True, path_type=Path),
    help="Its weights: a state_dict, a checkpoint with one inside, safetensors, or what pyro.get_param_store().save() "
    "wrote. Without it the program must come with its weights.",
)
@_option(
    "A Pyro program of your own",
    "--example",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Its arguments: an .npz file with an array for each, by the names that the model gives them, rows first. They "
    "are traced and verified with, and their ELBO gives the threshold for anomalies unless --dataset or --data do.",
)
@_option(
    "A Pyro program of your own",
    "--static",
    multiple=True,
    metavar="NAME",
    help="An argument in the example that has no rows; it becomes a constant. Can be given several times.",
)
@_option(
    "A Pyro program of your own",
    "--check",
    is_flag=True,
    help="Only print the program's sites and functions, and what stands in the way of its export.",
)
@_option(
    "Weights trained elsewhere",
    "--state-dict",
    type=click.Path(exists=True, path_type=Path),
    help="Export weights of Pyro's VAE example instead of a run: a state_dict, a checkpoint with one inside, "
    "safetensors, or what pyro.get_param_store().save() wrote.",
)
@_option(
    "Weights trained elsewhere",
    "--weights-key",
    metavar="KEY",
    help="Of --state-dict or --weights: which weights of a checkpoint to take, where it holds several, like ema or "
    "callbacks.ema.",
)
@_option(
    "Weights trained elsewhere", "--data-shape", type=Sizes("1,28,28"), help="Shape of an observation, like 1,28,28."
)
@_option(
    "Weights trained elsewhere",
    "--dataset",
    type=click.Choice(DATASET_NAMES),
    help="Data set whose test images give the threshold for anomalies and verify the bundle, and whose training images "
    "calibrate int8. Without data, samples of the prior verify it, and there is no threshold.",
)
@_option(
    "Weights trained elsewhere",
    "--data",
    type=click.Path(exists=True, path_type=Path),
    help="Own data instead of --dataset, all rows for all three: .npy, .npz with x, IDX, or a folder of images.",
)
@_option(
    "Weights trained elsewhere",
    "--data-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with the IDX files of --dataset.",
)
@_option(
    "Weights trained elsewhere",
    "--scale",
    type=Numbers("0,16", count=2),
    help="LOW,HIGH: values of --data that become 0 and 1.",
)
@_option(
    "Weights trained elsewhere",
    "--resize",
    type=Sizes("28,28", count=2),
    help="HEIGHT,WIDTH to which the image files of --data are resized.",
)
@_option("Weights trained elsewhere", "--grey", is_flag=True, help="Convert colour images of --data to grey.")
@click.version_option(package_name="edgevae", prog_name="vae-export")
def main(
    run: Path | None,
    formats: tuple[str, ...],
    part: Part,
    precisions: tuple[Precision, ...],
    max_elbo_lost: float | None,
    out: Path | None,
    force: bool,
    sign_with: Path | None,
    model_version: str,
    license_: str,
    opset: int,
    no_optimize: bool,
    atol: float,
    rtol: float,
    program: str | None,
    program_weights: Path | None,
    example: Path | None,
    static: tuple[str, ...],
    check: bool,
    state_dict: Path | None,
    weights_key: str | None,
    data_shape: tuple[int, ...] | None,
    **data_options: Any,
) -> None:
    """Export a trained RUN, by default the newest in runs/, to a verified bundle.

    Every graph is compared with Pyro before the bundle is written. If a number is out of tolerance, the exit code is 1
    and nothing is written.

    \b
    Examples:
      vae-export --format onnx
      vae-export runs/mnist-mlp --format all --out models/mnist
      vae-export runs/mnist-mlp --format wheel --model-version 1.2.0 --license Apache-2.0
      vae-export runs/mnist-mlp --precision int8 --precision fp16
      vae-export runs/mnist-mlp --graphs encoder --out models/mnist-encoder
      vae-export runs/mnist-mlp --sign key.pem
      vae-export --program my_models.py:make_vae --weights vae.pt --example batch.npz --out models/mine
      vae-export --program my_models.py:make_vae --example batch.npz --check
      vae-export --state-dict vae.pt --dataset mnist --data-dir ~/mnist
      vae-export --state-dict checkpoint.ckpt --weights-key ema --data images.npy
    """
    if not (math.isfinite(atol) and math.isfinite(rtol)):
        raise click.UsageError(f"--atol and --rtol must be finite, got {atol} and {rtol}")
    of_program = {"weights": program_weights, "example": example, "static": static, "check": check}
    elsewhere = {"weights_key": weights_key, "data_shape": data_shape, **data_options}
    _check_origin({"RUN": run, "--program": program, "--state-dict": state_dict}, of_program, elsewhere)
    data = _data_of(**data_options)
    try:
        model_version, license_ = check_version(model_version), check_license(license_) if license_ else ""
        own = None if program is None else _OwnProgram.open(program, program_weights, weights_key, example, static)
        if own is not None and check:
            own.print_check()
            return
        origin = (own and own.name) or state_dict or run or newest_run(_RUNS)
        out = (out or _MODELS / (Path(origin).stem if state_dict else Path(origin).resolve().name)).resolve()
        check_writable(out, force)
        key = SigningKey(sign_with, passphrase_of_signing_key) if sign_with is not None else None
        wheel = _check_wheel(out, model_version, force) if _WHEEL in formats else None
        if own is not None:
            source: Source | SiteSource = own.source(out.name, data_shape, data)
        elif state_dict is not None:
            weights = read_weights(state_dict, REFERENCE_NAMES, weights_key)
            _echo_notes(weights)
            source = source_of_weights(weights, out.name, data_shape, data)
        else:
            source = source_of_run(Path(origin), out.name)
        click.echo(f"{origin}: verified with {source.samples_note}")
        if "int8" in precisions and isinstance(source, Source) and source.train_samples is None:
            click.echo(
                f"{origin}: no training data to calibrate int8 with: weights are rounded to the nearest integers, and "
                "convolutions and products of the latent stay in float32. Train the run again, or give "
                "--dataset or --data with --state-dict"
            )
        reports = export_bundle(
            dataclasses.replace(source, version=model_version, license=license_),
            out,
            _chosen(formats),
            part=part,
            precisions={
                name: limit if max_elbo_lost is None else max_elbo_lost
                for name, limit in LIMITS_NATS.items()
                if name in precisions
            },
            opset=opset,
            optimize=not no_optimize,
            tolerances=Tolerances(atol=atol, rtol=rtol),
            overwrite=force,
            sign=key,
        )
        if wheel is not None:
            build_wheel(out, out.parent)
    except VerificationError as error:
        click.echo("\n\n".join(map(str, error.reports)))
        raise click.ClickException(str(error)) from error
    except (ExportError, TrainError, EdgeVAEError, OSError) as error:
        raise click.ClickException(str(error)) from error
    _print_written(out, reports, part, wheel)


def _print_written(out: Path, reports: Sequence[Report], part: Part, wheel: Path | None) -> None:
    """Print the verifications, and what to try."""
    click.echo("\n\n".join(map(str, reports)))
    for name, spec in Bundle(out).manifest.precisions.items():
        if left := left_in_float32(spec):
            click.echo(f"\n{name}: {' and '.join(left)} stays in float32: there is nothing to quantize in it")
    shown = Path(os.path.relpath(out)) if out.is_relative_to(Path.cwd()) else out
    trial = "vae-run " + (f"info {shown}" if part == "encoder" else f"generate {shown} --out samples.png")
    if Bundle(out).manifest.model.program is not None:
        trial = f"vae-run info {shown}"
    click.echo(f"\nWrote {shown}. Try it with: {trial}")
    if wheel is not None:
        click.echo(f"Wrote {shown.parent / wheel.name}. Try it with: pip install {shown.parent / wheel.name}")


def _check_origin(
    origins: Mapping[str, object], of_program: Mapping[str, object], elsewhere: Mapping[str, object]
) -> None:
    """Check that there is one origin of the model, and that options about it go with it."""
    given = [name for name, value in origins.items() if value is not None]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} were both given; give one of them")
    if "--program" not in given:
        for name, value in of_program.items():
            if value:
                raise click.UsageError(f"--{name} goes with --program")
    if not {"--program", "--state-dict"}.intersection(given):
        for name, value in elsewhere.items():
            if value:
                option = name.replace("_", "-")
                raise click.UsageError(
                    f"--{option} goes with --state-dict or --program; a run knows its own weights and data"
                )


@dataclasses.dataclass(frozen=True)
class _OwnProgram:
    """A Pyro program of the user's own, with weights and an example."""

    program: LoadedProgram
    example: Mapping[str, Tensor]
    static: tuple[str, ...]

    @classmethod
    def open(
        cls, place: str, weights: Path | None, key: str | None, example: Path | None, static: tuple[str, ...]
    ) -> _OwnProgram:
        """Import the program, read its example, load its weights, and print what was done to them."""
        if example is None:
            raise click.UsageError(
                "--program needs --example: an .npz file with an array for each argument of the model"
            )
        program, arrays = load_program(place), read_example(example)
        if weights is not None:
            _echo_notes(load_weights(program, weights, arrays, key))
        return cls(program, arrays, static)

    @property
    def name(self) -> str:
        """The name of its class or function."""
        return self.program.name

    def print_check(self) -> None:
        """Print what it consists of; end with an error if something stands in the way of its export."""
        report = check_program(self.program.model, self.program.guide, self.example, static=self.static)
        click.echo(str(report))
        if not report.passed:
            raise ExportError(f"{self.name} cannot be exported")

    def source(self, name: str, data_shape: tuple[int, ...] | None, data: DataConfig | None) -> Source | SiteSource:
        """Derive its functions, print what a user should know, and measure it."""
        model, guide = self.program.model, self.program.guide
        found = open_program(model, guide, self.example, static=self.static, data_shape=data_shape, name=self.name)
        for note in found.notes:
            click.echo(f"{self.name}: {note}")
        if isinstance(found, SiteProgram):
            if data_shape is not None:
                raise ExportError(f"{self.name} is exported by its sites, whose shapes stay; leave --data-shape out")
            if data is None:
                return source_of_sites(found, name)
            return source_of_sites(found, name, read_data(found.program, data), data.name)
        if data is None:
            return source_of_program(found, name)
        dataset = dataset_of(data, labels=found.spec.num_classes > 0)
        if data_shape is None:
            found.show_as(dataset.data_shape)
        return source_of_program(found, name, dataset)


def _echo_notes(weights: Weights) -> None:
    """Print what was done to weights that were read."""
    for note in weights.notes:
        click.echo(f"{weights.path}: {note}")


def _data_of(**options: Any) -> DataConfig | None:
    """Return which data to measure weights with; `None` for none."""
    if options["dataset"] is None and options["data"] is None:
        if options["data_dir"] is not None:
            raise click.UsageError("--data-dir goes with --dataset")
        for name in ("scale", "resize", "grey"):
            if options[name]:
                raise click.UsageError(f"--{name} goes with --data")
        return None
    try:
        return DataConfig(**options)
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


def passphrase_of_signing_key() -> str:
    """Return the passphrase of the signing key, from the environment or the terminal."""
    if (given := os.environ.get(_PASSPHRASE)) is not None:
        return given
    if not sys.stdin.isatty():
        raise ExportError(f"the signing key is encrypted; set {_PASSPHRASE} to its passphrase")
    return str(click.prompt("Passphrase of the signing key", hide_input=True))


def _chosen(formats: tuple[str, ...]) -> list[Format]:
    wanted = {*formats, *([_ONNX] if _WHEEL in formats else [])}
    return [name for name in FORMATS if name in wanted or _ALL in wanted]


def _check_wheel(out: Path, version: str, force: bool) -> Path:
    """Return the path of a bundle's wheel; refuse to replace an existing one without --force."""
    path = out.parent / wheel_file(out.name, version)
    if path.exists() and not force:
        raise ExportError(f"{path} is already there; choose another --model-version, or give --force to replace it")
    return path
