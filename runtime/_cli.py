"""`vae-run`, also `python -m runtime`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np
from numpy.typing import NDArray

from ._bundle import Bundle
from ._errors import EdgeVAEError, InputError
from ._files import read_observations, save_columns, save_npz, save_pairs
from ._load import load
from ._model import Model
from ._providers import ProviderChoice
from ._signature import level_names

_FAILED = 1
_BAD_INPUT = 2
_COLUMNS = 8

_bundle = click.argument("bundle", type=click.Path(path_type=Path))
_inputs = click.argument(
    "inputs", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
_y = click.option("--y", type=int, help="Label of all inputs, for a conditional model; or an array y in a .npz file.")
_SEEDS = click.IntRange(0, 2**64 - 1)
_SEED_HELP = "Noise stream, the same as PyTorch's on the CPU."


def _run_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of running, and turn the runtime's errors into messages."""

    @click.option("--provider", type=click.Choice(get_args(ProviderChoice)), default="auto", help="Where to run.")
    @click.option("--threads", type=click.IntRange(1, 1024), help="Threads in an operator.  [default: all CPUs]")
    @functools.wraps(command)
    def run(bundle: Path, provider: ProviderChoice, threads: int | None, **options: Any) -> None:
        with _Messages():
            command(load(bundle, provider, threads), **options)

    return run


class _BadInput(click.ClickException):
    exit_code = _BAD_INPUT


class _Messages:
    """Shows the runtime's errors, and those of files, as messages with exit code 2."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (EdgeVAEError, OSError)):
            raise _BadInput(str(error)) from error


@click.group(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
def main() -> None:
    """Run an exported VAE, without PyTorch.

    INPUTS are images (PNG, JPEG), .npy arrays, or .npz files with an array x; uint8, or float, for most models in
    [0, 1].

    \b
    Examples:
      vae-run info models/digits-mlp
      vae-run generate models/digits-mlp -n 24 --seed 0 --out samples.png
      vae-run reconstruct models/digits-mlp models/digits-mlp/reference.npz --out reconstructions.png
    """


@main.command()
@_bundle
def info(bundle: Path) -> None:
    """Say what a bundle is: the model, its graphs, its data, its quality."""
    with _Messages():
        manifest = Bundle(bundle).manifest
    model, dataset = manifest.model, manifest.dataset
    rows = [
        ("name", manifest.name),
        ("model", f"{model.architecture} {model.sizes}, {model.likelihood}"),
        ("observations", f"shape {model.data_shape}, float{' in [0, 1]' * model.unit_interval} or uint8"),
        ("latent", f"{model.latent_text}, space {manifest.latent_space_id[:16]}"),
        ("trained on", "not known" if dataset is None else f"{dataset.name}, {dataset.num_train} images"),
    ]
    if dataset is not None:
        bound = ", a bound on log p(x given y)" if model.num_classes else ""
        rows.append(("test ELBO", f"{dataset.test_elbo_nats:.2f} nats an image{bound}, {dataset.num_test} images"))
    for name, graph in manifest.graphs.items():
        inputs = ", ".join(tensor.name for tensor in graph.inputs)
        outputs = ", ".join(tensor.name for tensor in graph.outputs)
        rows.append((name, f"{inputs} → {outputs}  ({graph.file.file}, {graph.file.size_bytes:,} bytes)"))
    rows += [(name, f"for PyTorch  ({entry.size_bytes:,} bytes)") for name, entry in manifest.torch_files.items()]
    if model.num_classes:
        rows.insert(3, ("labels", f"y, integers from 0 to {model.num_classes - 1}"))
    rows.append(("made with", ", ".join(f"{name} {version}" for name, version in manifest.producers.items())))
    width = max(len(label) for label, _ in rows)
    for label, text in rows:
        click.echo(f"{label.ljust(width)}  {text}")


@main.command()
@_bundle
@_run_options
@click.pass_context
def verify(ctx: click.Context, model: Model) -> None:
    """Compare the model, as it runs here, with what Pyro computed at export."""
    report = model.verify()
    click.echo(f"{model.manifest.name} on {model.provider}")
    click.echo(str(report))
    if not report.passed:
        ctx.exit(_FAILED)


@main.command()
@_bundle
@_inputs
@_y
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="A .npz file to write.")
@_run_options
def encode(model: Model, inputs: tuple[Path, ...], y: int | None, out: Path) -> None:
    """Write z_loc and z_scale of each observation; of a hierarchy all levels, of a mixture component_probs too."""
    x, labels = read_observations(inputs, model.manifest.model, y)
    posterior = model.encode(x, y=labels)
    locs, scales = (level_names(name, len(posterior.levels)) for name in ("z_loc", "z_scale"))
    arrays = {
        name: value
        for level, names in zip(posterior.levels, zip(locs, scales, strict=True), strict=True)
        for name, value in zip(names, level, strict=True)
    }
    if posterior.component_probs is not None:
        arrays["component_probs"] = posterior.component_probs
    save_npz(out, **arrays)
    click.echo(f"{out}: {', '.join(arrays)}, {len(posterior.z_loc)} rows of {model.z_dim}")


@main.command()
@_bundle
@_inputs
@_y
@click.option("--seed", type=_SEEDS, help=_SEED_HELP)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="A .png or .npz file to write."
)
@_run_options
def reconstruct(model: Model, inputs: tuple[Path, ...], y: int | None, seed: int | None, out: Path) -> None:
    """Write the reconstruction of each observation; without --seed that of the posterior's mean.

    A .png shows the first 36, each row of observations above its reconstructions; a .npz holds all of them.
    """
    x, labels = read_observations(inputs, model.manifest.model, y)
    loc_img = model.reconstruct(x, y=labels, seed=seed)
    if out.suffix.lower() == ".png":
        save_pairs(out, x, loc_img, model.data_shape)
    else:
        save_npz(out, loc_img=loc_img)
    click.echo(f"{out}: {len(loc_img)} reconstructions on {model.provider}")


@main.command()
@_bundle
@click.option("-n", "--num-samples", "num_samples", type=click.IntRange(min=1), default=64, help="How many.")
@click.option("--seed", type=_SEEDS, default=0, help=_SEED_HELP)
@click.option("--y", help="Label, for a conditional model; each for an equal share of every class.")
@click.option("--component", help="Component, for a mixture; each for an equal share of every one.")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="A .png or .npz file to write."
)
@_run_options
def generate(
    model: Model,
    num_samples: int,
    seed: int,
    y: str | None,
    component: str | None,
    out: Path,
) -> None:
    """Draw from the prior and decode; with `each`, a picture has a row for every class or component."""
    if y == component == "each":
        raise InputError("--y each and --component each were both given; a picture has rows of one of them")
    num_components = model.manifest.model.num_components
    labels = _shares("--y", y, num_samples, model.num_classes)
    components = _shares("--component", component, num_samples, num_components)
    loc_img = model.generate(num_samples, seed, y=labels, component=components)
    if out.suffix.lower() == ".png":
        from .images import save_grid  # Pillow, which only pictures need

        rows = model.num_classes if y == "each" else num_components if component == "each" else None
        save_grid(out, loc_img, model.data_shape, num_samples // rows if rows else _COLUMNS)
    else:
        save_npz(out, loc_img=loc_img)
    click.echo(f"{out}: {num_samples} samples, seed {seed}, on {model.provider}")


@main.command()
@_bundle
@_inputs
@_y
@click.option("--seed", type=_SEEDS, default=0, help=_SEED_HELP)
@click.option("--rate", type=float, default=0.01, help="Part of the test images that may be taken for unusual.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="A .csv or .npz file to write.")
@_run_options
def score(model: Model, inputs: tuple[Path, ...], y: int | None, seed: int, rate: float, out: Path | None) -> None:
    """Say how unusual each observation is: its ELBO in nats, with reconstruction and KL, against the test images."""
    x, labels = read_observations(inputs, model.manifest.model, y)
    limit, found = model.threshold(rate), model.score(x, seed, y=labels)
    unusual = found.elbo < limit
    if out is not None:
        columns = {"elbo": found.elbo, "reconstruction": found.reconstruction, "kl": found.kl, "unusual": unusual}
        save_columns(out, **columns)
    click.echo(
        f"{unusual.sum()} of {len(unusual)} observations lie below {limit:.2f} nats, as {rate:g} of the test images do"
    )


def _shares(option: str, value: str | None, count: int, num_choices: int) -> NDArray[np.int64] | None:
    """Return the choice of each row: one for all, or an equal share of each."""
    if value is None:
        return None
    if value != "each":
        try:
            return np.full(count, int(value))
        except ValueError as error:
            raise InputError(f"{option} must be an integer, or each, got {value!r}") from error
    if num_choices == 0 or count % num_choices:
        raise InputError(f"{option} each makes equal shares of {num_choices} choices, and -n is {count}")
    return np.repeat(np.arange(num_choices), count // num_choices)
