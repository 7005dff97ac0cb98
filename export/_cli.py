"""`vae-export`."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import click
import onnx
import torch

from export._bundle_writer import FORMATS, Format, Source, check_writable, export_bundle
from export._errors import ExportError, VerificationError
from export._onnx_format import DEFAULT_OPSET
from export._state_dict import load_state_dict
from runtime import DatasetSpec, EdgeVAEError, Tolerances
from train import DATASET_NAMES, VAE, DatasetName, TrainError, load_dataset, load_run, newest_run
from train._sizes import Sizes

_RUNS = Path("runs")
_MODELS = Path("models")
_ALL = "all"
_PRIOR_DRAWS = 254
_PROBABILITIES = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.argument("run", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice([*FORMATS, _ALL]),
    default=("onnx",),
    help="What to write; can be given several times.",
)
@click.option("--out", type=click.Path(path_type=Path), help="The bundle's folder.  [default: models/<name>]")
@click.option("--force", is_flag=True, help="Replace the bundle that --out already holds.")
@click.option(
    "--opset",
    type=click.IntRange(18, onnx.defs.onnx_opset_version()),
    default=DEFAULT_OPSET,
    help="Version of ONNX's operators.",
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
    out: Path | None,
    force: bool,
    opset: int,
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
      vae-export --state-dict vae.pt --dataset mnist --data-dir ~/mnist
    """
    if run is not None and state_dict is not None:
        raise click.UsageError("RUN and --state-dict were both given; give one of them")
    if state_dict is None and (data_shape is not None or dataset is not None):
        raise click.UsageError("--data-shape and --dataset go with --state-dict; a run knows its own data")
    if not (math.isfinite(atol) and math.isfinite(rtol)):
        raise click.UsageError(f"--atol and --rtol must be finite, got {atol} and {rtol}")
    if data_dir is not None and dataset is None:
        raise click.UsageError("--data-dir goes with --dataset")
    try:
        if state_dict is None:
            run = run or newest_run(_RUNS)
            out = out or _MODELS / run.resolve().name
            check_writable(out, force)
            source = _from_run(run, out.name)
        else:
            out = out or _MODELS / state_dict.stem
            check_writable(out, force)
            source = _from_state_dict(load_state_dict(state_dict, data_shape), out.name, dataset, data_dir)
        click.echo(f"{run or state_dict}: verified with {source.samples_note}")
        reports = export_bundle(
            source,
            out,
            _chosen(formats),
            opset=opset,
            tolerances=Tolerances(atol=atol, rtol=rtol),
            overwrite=force,
        )
    except VerificationError as error:
        click.echo("\n\n".join(map(str, error.reports)))
        raise click.ClickException(str(error)) from error
    except (ExportError, TrainError, EdgeVAEError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo("\n\n".join(map(str, reports)))
    click.echo(f"\nWrote {out}. Try it with: vae-run generate {out} --out samples.png")


def _chosen(formats: tuple[str, ...]) -> list[Format]:
    return [name for name in FORMATS if name in formats or _ALL in formats]


def _from_run(path: Path, name: str) -> Source:
    run = load_run(path)
    info, last = run.config.dataset, run.metrics[-1]
    spec = DatasetSpec(
        name=info.name,
        num_train=info.num_train,
        num_test=info.num_test,
        test_elbo_nats=last.test_elbo_nats,
        num_particles=last.num_particles,
        binarize=run.config.training.binarize,
        elbo_quantiles=_quantiles(run.test_elbos),
    )
    training = dataclasses.asdict(run.config.training)
    return Source(name, run.vae, run.samples, f"test images of {info.name}", spec, run.labels, training)


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
