"""`vae-export`."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import get_args

import click
import onnx
import torch

from export._bundle_writer import FORMATS, Format, Source, export_bundle
from export._errors import ExportError, VerificationError
from export._onnx_format import DEFAULT_OPSET
from export._precision import LIMITS_NATS
from export._preprocessing import preprocessing_spec
from export._release import check_license, check_version
from export._state_dict import load_state_dict
from export._wheel import build_wheel, wheel_file
from export._whole import check_writable
from runtime import PARTS, DatasetSpec, EdgeVAEError, Part, Precision, Tolerances
from train import DATASET_NAMES, VAE, DatasetName, TrainError, load_dataset, load_run, newest_run
from train._numbers import Sizes

_RUNS = Path("runs")
_MODELS = Path("models")
_ALL, _ONNX, _WHEEL = "all", "onnx", "wheel"
_PRIOR_DRAWS = 254
_PROBABILITIES = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.argument("run", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice([*FORMATS, _WHEEL, _ALL]),
    default=(_ONNX,),
    help="What to write; can be given several times. all is onnx, torchscript and pt2; wheel is onnx, and beside the "
    "bundle a Python package with bundle and runtime in it.",
)
@click.option(
    "--graphs",
    "part",
    type=click.Choice(PARTS),
    default=_ALL,
    help="The whole model; its encoder, which makes latents; or its decoder, which makes observations of them.",
)
@click.option("--out", type=click.Path(path_type=Path), help="The bundle's folder.  [default: models/<name>]")
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(get_args(Precision)),
    default=("fp32",),
    help="Precision of the networks' ONNX graphs; can be given several times, fp32 is always there.",
)
@click.option(
    "--max-elbo-lost",
    type=click.FloatRange(min=0),
    help="What a lower precision may lose of the mean ELBO, nats a row.  "
    f"[default: {', '.join(f'{limit} for {name}' for name, limit in LIMITS_NATS.items())}]",
)
@click.option("--force", is_flag=True, help="Replace the bundle that --out already holds, and its wheel.")
@click.option("--model-version", default="1.0.0", help="The model's version.")
@click.option("--license", "license_", default="", help="The model's license, an SPDX expression like Apache-2.0.")
@click.option(
    "--opset",
    type=click.IntRange(18, onnx.defs.onnx_opset_version()),
    default=DEFAULT_OPSET,
    help="Version of ONNX's operators.",
)
@click.option(
    "--no-optimize",
    is_flag=True,
    help="Leave the ONNX graphs as PyTorch's exporter wrote them, but for what keeps their numbers right.",
)
@click.option("--atol", type=click.FloatRange(min=0), default=Tolerances().atol, help="Absolute tolerance.")
@click.option("--rtol", type=click.FloatRange(min=0), default=Tolerances().rtol, help="Relative tolerance.")
@click.option(
    "--state-dict",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Export weights trained elsewhere with Pyro's VAE example (torch.save or safetensors) instead of a run.",
)
@click.option("--data-shape", type=Sizes("1,28,28"), help="With --state-dict: shape of an observation, like 1,28,28.")
@click.option(
    "--dataset",
    type=click.Choice(DATASET_NAMES),
    help="With --state-dict: the data set whose test images to verify with. Without it, draws from the model's prior.",
)
@click.option(
    "--data-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="With --dataset: folder with its IDX files.",
)
@click.version_option(package_name="edgevae", prog_name="vae-export")
def main(
    run: Path | None,
    formats: tuple[str, ...],
    part: Part,
    precisions: tuple[Precision, ...],
    max_elbo_lost: float | None,
    out: Path | None,
    force: bool,
    model_version: str,
    license_: str,
    opset: int,
    no_optimize: bool,
    atol: float,
    rtol: float,
    state_dict: Path | None,
    data_shape: tuple[int, ...] | None,
    dataset: DatasetName | None,
    data_dir: Path | None,
) -> None:
    """Export a trained RUN, by default the newest in runs/, to a verified bundle.

    Every graph is compared with Pyro before the bundle is written; where a number is out of tolerance, the exit code
    is 1 and nothing is written.

    \b
    Examples:
      vae-export --format onnx
      vae-export runs/mnist-mlp --format all --out models/mnist
      vae-export runs/mnist-mlp --format wheel --model-version 1.2.0 --license Apache-2.0
      vae-export runs/mnist-mlp --precision int8 --precision fp16
      vae-export runs/mnist-mlp --graphs encoder --out models/mnist-encoder
      vae-export --state-dict vae.pt --dataset mnist --data-dir ~/mnist
    """
    if run is not None and state_dict is not None:
        raise click.UsageError("RUN and --state-dict were both given; give one of them")
    _check_usage(atol, rtol, state_dict, data_shape, dataset, data_dir)
    try:
        model_version, license_ = check_version(model_version), check_license(license_) if license_ else ""
        origin = state_dict or run or newest_run(_RUNS)
        out = (out or _MODELS / (origin.stem if state_dict else origin.resolve().name)).resolve()
        check_writable(out, force)
        wheel = _check_wheel(out, model_version, force) if _WHEEL in formats else None
        if state_dict is None:
            source = _from_run(origin, out.name)
        else:
            source = _from_state_dict(load_state_dict(origin, data_shape), out.name, dataset, data_dir)
        click.echo(f"{origin}: verified with {source.samples_note}")
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
        )
        if wheel is not None:
            build_wheel(out, out.parent)
    except VerificationError as error:
        click.echo("\n\n".join(map(str, error.reports)))
        raise click.ClickException(str(error)) from error
    except (ExportError, TrainError, EdgeVAEError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo("\n\n".join(map(str, reports)))
    shown = Path(os.path.relpath(out)) if out.is_relative_to(Path.cwd()) else out
    trial = f"info {shown}" if part == "encoder" else f"generate {shown} --out samples.png"
    click.echo(f"\nWrote {shown}. Try it with: vae-run {trial}")
    if wheel is not None:
        click.echo(f"Wrote {shown.parent / wheel.name}. Try it with: pip install {shown.parent / wheel.name}")


def _check_usage(
    atol: float,
    rtol: float,
    state_dict: Path | None,
    data_shape: tuple[int, ...] | None,
    dataset: DatasetName | None,
    data_dir: Path | None,
) -> None:
    if state_dict is None and (data_shape is not None or dataset is not None):
        raise click.UsageError("--data-shape and --dataset go with --state-dict; a run knows its own data")
    if not (math.isfinite(atol) and math.isfinite(rtol)):
        raise click.UsageError(f"--atol and --rtol must be finite, got {atol} and {rtol}")
    if data_dir is not None and dataset is None:
        raise click.UsageError("--data-dir goes with --dataset")


def _chosen(formats: tuple[str, ...]) -> list[Format]:
    wanted = {*formats, *([_ONNX] if _WHEEL in formats else [])}
    return [name for name in FORMATS if name in wanted or _ALL in wanted]


def _check_wheel(out: Path, version: str, force: bool) -> Path:
    """Return where the wheel of a bundle goes; refuse to replace one that is there unless asked to."""
    path = out.parent / wheel_file(out.name, version)
    if path.exists() and not force:
        raise ExportError(f"{path} is already there; choose another --model-version, or give --force to replace it")
    return path


def _from_run(path: Path, name: str) -> Source:
    run = load_run(path)
    info = run.config.dataset
    test_elbo_nats, num_particles = run.test_elbo
    spec = DatasetSpec(
        name=info.name,
        num_train=info.num_train,
        num_test=info.num_test,
        test_elbo_nats=test_elbo_nats,
        num_particles=num_particles,
        binarize=run.config.training.binarize,
        elbo_quantiles=_quantiles(run.test_elbos),
        class_names=info.class_names,
    )
    training = dataclasses.asdict(run.config.training)
    source = Source(name, run.vae, run.samples, f"test images of {info.name}", spec, run.labels, training)
    return dataclasses.replace(source, preprocessing=preprocessing_spec(info.preprocessing))


def _quantiles(elbos: torch.Tensor | None) -> tuple[tuple[float, float], ...]:
    if elbos is None:
        return ()
    values = torch.quantile(elbos, torch.tensor(_PROBABILITIES))
    return tuple(zip(_PROBABILITIES, values.tolist(), strict=True))


def _from_state_dict(vae: VAE, name: str, dataset: DatasetName | None, data_dir: Path | None) -> Source:
    if dataset is not None:
        images = load_dataset(dataset, data_dir)
        if images.data_shape != vae.config.data_shape:
            raise ExportError(
                f"the images of {dataset} have shape {images.data_shape}, the state_dict's {vae.config.data_shape}"
            )
        return Source(name, vae, images.test, f"test images of {dataset}", None)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        z = torch.randn((_PRIOR_DRAWS, vae.config.z_dim), generator=generator)
        images = vae.decoder(z).reshape(-1, *vae.config.data_shape)
    return Source(name, vae, images, "images drawn from the model's own prior (no data set was given)", None)
