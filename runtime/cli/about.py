"""`info` and `verify`: what a bundle is, and whether it still is that here."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from ..bundle import Bundle
from ..manifest import Manifest
from ..model import Model
from ..preprocessing import values_text
from ..verify import BATCH_SIZES
from .options import FAILED, answer, bundle_argument, json_option, messages, public_key_option, runs_a_model


@click.command(short_help="Say what a bundle is.")
@bundle_argument
@public_key_option
@json_option
def info(bundle: Path, public_key: Path | None, as_json: bool) -> None:
    """Say what a bundle is: the model, its graphs, its data, its quality.

    With --json that is the content of its manifest.json.

    \b
    Examples:
      vae-run info models/digits-mlp
      vae-run info models/digits-mlp --json
    """
    with messages():
        manifest = Bundle(bundle, public_key).manifest
    if as_json:
        click.echo(manifest.encode(), nl=False)
        return
    rows = _rows(manifest)
    width = max(len(label) for label, _ in rows)
    for label, text in rows:
        click.echo(f"{label.ljust(width)}  {text}")


@click.command(short_help="Compare it, as it runs here, with Pyro.")
@bundle_argument
@json_option
@runs_a_model
@click.pass_context
def verify(ctx: click.Context, model: Model, as_json: bool) -> None:
    """Compare the model, as it runs here, with what Pyro computed at export.

    Exit code 1 says that a number is out of tolerance.

    \b
    Examples:
      vae-run verify models/digits-mlp
      vae-run verify models/mnist-conditional --json
    """
    report = model.verify()
    answer(
        as_json,
        f"{model.manifest.name} on {model.provider}\n{report}",
        name=model.manifest.name,
        provider=model.provider,
        format=report.format,
        passed=report.passed,
        rows=report.rows,
        batch_sizes=BATCH_SIZES,
        checks=[msgspec.structs.asdict(check) for check in report.checks],
    )
    if not report.passed:
        ctx.exit(FAILED)


def _rows(manifest: Manifest) -> list[tuple[str, str]]:
    """What there is to say, each with a word for it."""
    model, dataset = manifest.model, manifest.dataset
    rows = [
        ("name", manifest.name),
        ("model", f"{model.architecture} {model.sizes}, {model.likelihood}"),
        ("observations", f"shape {model.data_shape}, {values_text(model, manifest.preprocessing)}"),
    ]
    if manifest.preprocessing is not None and manifest.preprocessing.text:
        rows.append(("preprocessing", manifest.preprocessing.text))
    if model.num_classes:
        names = f": {', '.join(dataset.class_names)}" if dataset is not None and dataset.class_names else ""
        rows.append(("labels", f"y, integers from 0 to {model.num_classes - 1}{names}"))
    rows += [
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
    for precision, spec in manifest.precisions.items():
        size = sum(entry.size_bytes for entry in spec.graphs.values())
        lost = f"{spec.elbo_lost_nats:.3f} nats a row of the mean ELBO lost"
        rows.append((precision, f"{', '.join(spec.graphs)}  ({lost}; {size:,} bytes)"))
    rows += [(name, f"for PyTorch  ({entry.size_bytes:,} bytes)") for name, entry in manifest.torch_files.items()]
    rows.append(("made with", ", ".join(f"{name} {version}" for name, version in manifest.producers.items())))
    return rows
