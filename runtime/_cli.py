"""`vae-run`, also `python -m runtime`."""

from __future__ import annotations

import functools
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np
from numpy.typing import NDArray

from ._bundle import Bundle
from ._errors import EdgeVAEError, InputError
from ._inputs import observations
from ._manifest import ModelSpec
from ._model import Model, load
from ._providers import ProviderChoice

_FAILED = 1
_BAD_INPUT = 2
_PAIR_COLUMNS, _PAIR_ROWS = 12, 3

_bundle = click.argument("bundle", type=click.Path(path_type=Path))
_inputs = click.argument(
    "inputs", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
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

    INPUTS are images (PNG, JPEG), .npy arrays, or .npz files with an array x; float in [0, 1], or uint8.

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
        ("model", f"{model.architecture} {model.data_dim}-{model.hidden_dim}-{model.z_dim}, {model.likelihood}"),
        ("observations", f"shape {model.data_shape}, float{' in [0, 1]' * model.unit_interval} or uint8"),
        ("latent", f"{model.latent}, {model.z_dim} dimensions, space {manifest.latent_space_id[:16]}"),
        ("trained on", "not known" if dataset is None else f"{dataset.name}, {dataset.num_train} images"),
    ]
    if dataset is not None:
        rows.append(("test ELBO", f"{dataset.test_elbo_nats:.2f} nats an image, {dataset.num_test} images"))
    for name, graph in manifest.graphs.items():
        inputs = ", ".join(tensor.name for tensor in graph.inputs)
        outputs = ", ".join(tensor.name for tensor in graph.outputs)
        rows.append((name, f"{inputs} → {outputs}  ({graph.file.file}, {graph.file.size_bytes:,} bytes)"))
    rows += [(name, f"for PyTorch  ({entry.size_bytes:,} bytes)") for name, entry in manifest.torch_files.items()]
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
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="A .npz file to write.")
@_run_options
def encode(model: Model, inputs: tuple[Path, ...], out: Path) -> None:
    """Write z_loc and z_scale of each observation."""
    posterior = model.encode(_read(inputs, model.manifest.model))
    _save_npz(out, z_loc=posterior.z_loc, z_scale=posterior.z_scale)
    click.echo(f"{out}: z_loc, z_scale, {posterior.z_loc.shape[0]} rows of {model.z_dim}")


@main.command()
@_bundle
@_inputs
@click.option("--seed", type=_SEEDS, help=_SEED_HELP)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="A .png or .npz file to write."
)
@_run_options
def reconstruct(model: Model, inputs: tuple[Path, ...], seed: int | None, out: Path) -> None:
    """Write the reconstruction of each observation; without --seed that of the posterior's mean.

    A .png shows the first 36, each row of observations above its reconstructions; a .npz holds all of them.
    """
    x = _read(inputs, model.manifest.model)
    loc_img = model.reconstruct(x, seed=seed)
    if out.suffix.lower() == ".png":
        _save_pairs(out, x, loc_img, model.data_shape)
    else:
        _save_npz(out, loc_img=loc_img)
    click.echo(f"{out}: {len(loc_img)} reconstructions on {model.provider}")


@main.command()
@_bundle
@click.option("-n", "--num-samples", "num_samples", type=click.IntRange(min=1), default=64, help="How many.")
@click.option("--seed", type=_SEEDS, default=0, help=_SEED_HELP)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="A .png or .npz file to write."
)
@_run_options
def generate(model: Model, num_samples: int, seed: int, out: Path) -> None:
    """Draw from the prior and decode."""
    loc_img = model.generate(num_samples, seed)
    if out.suffix.lower() == ".png":
        from .images import save_grid  # Pillow, which only pictures need

        save_grid(out, loc_img, model.data_shape)
    else:
        _save_npz(out, loc_img=loc_img)
    click.echo(f"{out}: {num_samples} samples, seed {seed}, on {model.provider}")


def _read(paths: Sequence[Path], model: ModelSpec) -> NDArray[np.float32]:
    """Read all inputs as observations, float32, shape `(batch, data_dim)`."""
    return np.concatenate([_read_one(path, model) for path in paths])


def _read_one(path: Path, model: ModelSpec) -> NDArray[np.float32]:
    try:
        return observations(_load(path, model.data_shape), model)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _load(path: Path, data_shape: tuple[int, ...]) -> NDArray[Any]:
    if path.suffix.lower() not in {".npy", ".npz"}:
        from .images import read_image  # Pillow, which only pictures need

        return read_image(path, data_shape)[None]
    try:
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            names = list(content)
            if "x" in names:
                x: NDArray[Any] = content["x"]
                return x
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"cannot be read: {error}") from error
    raise InputError(f"must hold an array x, got {', '.join(names) or 'nothing'}")


def _save_pairs(path: Path, x: NDArray[np.float32], loc_img: NDArray[np.float32], data_shape: tuple[int, ...]) -> None:
    """Draw the first observations, each row above its reconstructions."""
    from .images import save_grid  # Pillow, which only pictures need

    x, loc_img = x[: _PAIR_COLUMNS * _PAIR_ROWS], loc_img[: _PAIR_COLUMNS * _PAIR_ROWS]
    columns = max(1, min(_PAIR_COLUMNS, len(loc_img)))
    filler = np.zeros((-len(loc_img) % columns, loc_img.shape[1]), np.float32)
    rows = [np.concatenate([part, filler]).reshape(-1, columns, loc_img.shape[1]) for part in (x, loc_img)]
    save_grid(path, np.stack(rows, axis=1).reshape(-1, loc_img.shape[1]), data_shape, columns)


def _save_npz(path: Path, **arrays: NDArray[np.float32]) -> None:
    if path.suffix.lower() != ".npz":
        raise InputError(f"--out must end in .npz, or .png for pictures, got {path}")
    np.savez(path, **arrays)  # type: ignore[arg-type]  # names are not options
