"""Commands about a bundle and this machine: `info`, `verify`, `bench`, `doctor`, `completion`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import click
import msgspec
import numpy as np
from click.shell_completion import get_completion_class

from .. import (
    BATCH_SIZES,
    Bundle,
    InputError,
    Manifest,
    Model,
    Noise,
    Precision,
    Program,
    ProgramSpec,
    values_text,
)
from ..doctor import Diagnosis, diagnose
from ..providers import usable_cpus
from . import by_site
from .options import (
    COMPUTED,
    bundle_argument,
    json_option,
    open_bundle,
    option,
    precision_option,
    provider_option,
    public_key_option,
    threads_option,
    with_model,
)
from .sections import SectionedCommand
from .terminal import FAILED, messages, print_json, print_result, progress

_WARM_UP_CALLS = 3
_MIN_CALLS = 5
_BATCH_SIZES = "1,32,256"
_PROGRAM, _COMPLETION_VARIABLE = "vae-run", "_VAE_RUN_COMPLETE"


@click.command(cls=SectionedCommand, short_help="Say what a bundle is.")
@bundle_argument
@public_key_option
@json_option
def info(bundle: Path, public_key: Path | None, as_json: bool) -> None:
    """Say what a bundle is: model, graphs, training data, quality.

    --json prints its manifest.json.

    \b
    Examples:
      vae-run info models/digits-mlp
      vae-run info models/digits-mlp --json
    """
    with messages():
        manifest = Bundle(bundle, public_key).manifest
        if as_json:
            print_json(manifest.encode())
            return
        facts = _facts(manifest)
        width = max(len(label) for label, _ in facts)
        for label, text in facts:
            click.echo(f"{label.ljust(width)}  {text}")


@click.command(cls=SectionedCommand, short_help="Check that a bundle gives the same numbers here as Pyro.")
@bundle_argument
@json_option
@with_model()
@click.pass_context
def verify(ctx: click.Context, model: Model | Program, as_json: bool) -> None:
    """Compare the model's numbers on this machine with those that Pyro computed at export.

    The exit code is 1 if a number is out of tolerance.

    \b
    Examples:
      vae-run verify models/digits-mlp
      vae-run verify models/mnist-conditional --json
    """
    report = model.verify()
    print_result(
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


def _model_facts(manifest: Manifest) -> list[tuple[str, str]]:
    """What `info` says of a model with one latent and one observed site."""
    model, dataset = manifest.model, manifest.dataset
    facts = [
        ("model", f"{model.architecture} {model.sizes}, {model.likelihood}"),
        ("observations", f"shape {model.data_shape}, {values_text(model, manifest.preprocessing)}"),
    ]
    if manifest.preprocessing is not None and manifest.preprocessing.text:
        facts.append(("preprocessing", manifest.preprocessing.text))
    if model.num_classes:
        names = f": {', '.join(dataset.class_names)}" if dataset is not None and dataset.class_names else ""
        facts.append(("labels", f"y, integers from 0 to {model.num_classes - 1}{names}"))
    facts.append(("latent", f"{model.latent_text}, space {manifest.latent_space_id[:16]}"))
    return facts


def _sites(program: ProgramSpec) -> list[tuple[str, str]]:
    """What `info` says of a program by its sites: arguments, sites, and whether a seed gives Pyro's samples."""
    facts = [
        ("argument", f"{each.name}: {each.dtype}, shape (batch{_sizes(each.shape)})") for each in program.arguments
    ]
    for site in program.sites:
        parameters = f" of {', '.join(site.parameters)}" if site.parameters else ""
        distribution = f", {site.distribution}{parameters}" if site.distribution else ""
        facts.append(("site", f"{site.name}: {site.role}, shape (batch{_sizes(site.shape)}){distribution}"))
    same = "the samples that it gives in Pyro"
    facts.append(("a seed gives", f"other samples than in Pyro: {why}" if (why := program.why_other_samples) else same))
    return facts


def _sizes(shape: tuple[int, ...]) -> str:
    return "".join(f", {size}" for size in shape)


def _facts(manifest: Manifest) -> list[tuple[str, str]]:
    """What `info` says: labels and texts."""
    model, dataset = manifest.model, manifest.dataset
    images = model.program is None and len(model.data_shape) == 3
    row, rows = ("an image", "images") if images else ("a row", "rows")
    facts = [("name", manifest.name), *(_model_facts(manifest) if model.program is None else _sites(model.program))]
    facts.append(
        ("trained on", f"{dataset.name}, {dataset.num_train} {rows}" if dataset and dataset.num_train else "unknown")
    )
    if dataset is not None:
        bound = ", a bound on log p(x given y)" if model.num_classes else ""
        tested = f"{dataset.num_test} {rows}{'' if dataset.num_train else f' of {dataset.name}'}"
        facts.append(("test ELBO", f"{dataset.test_elbo_nats:.2f} nats {row}{bound}, {tested}"))
    for name, graph in manifest.graphs.items():
        inputs = ", ".join(tensor.name for tensor in graph.inputs)
        outputs = ", ".join(tensor.name for tensor in graph.outputs)
        facts.append((name, f"{inputs} → {outputs}  ({graph.file.file}, {graph.file.size_bytes:,} bytes)"))
    for precision, spec in manifest.precisions.items():
        size = sum(entry.size_bytes for entry in spec.graphs.values())
        lost = f"{spec.elbo_lost_nats:.3f} nats a row of the mean ELBO lost"
        facts.append((precision, f"{', '.join(spec.graphs)}  ({lost}; {size:,} bytes)"))
    facts += [(name, f"for PyTorch  ({entry.size_bytes:,} bytes)") for name, entry in manifest.torch_files.items()]
    facts.append(("made with", ", ".join(f"{name} {version}" for name, version in manifest.producers.items())))
    return facts


class Timing(msgspec.Struct, frozen=True):
    """How long calls of one method took with one batch size.

    Args:
        method: Method of `Model`.
        batch_size: Rows in a call.
        calls: Number of measured calls.
        median_ms: Median time of a call.
        p99_ms: 99th percentile of the time of a call.
        rows_per_second: Throughput: rows of all calls over the time of all calls.
    """

    method: str
    batch_size: int
    calls: int
    median_ms: float
    p99_ms: float
    rows_per_second: float


@click.command(cls=SectionedCommand, short_help="Measure how fast a bundle is here.")
@bundle_argument
@option(
    COMPUTED,
    "--batch-size",
    "batch_sizes",
    multiple=True,
    default=[_BATCH_SIZES],
    help="Rows in a call; several with commas.",
)
@option(
    COMPUTED,
    "--seconds",
    type=click.FloatRange(min=0.01),
    default=1.0,
    help="How long to measure each method at each batch size.",
)
@json_option
@provider_option
@threads_option
@precision_option
@public_key_option
def bench(
    bundle: Path,
    provider: str,
    threads: int | None,
    precision: Precision,
    public_key: Path | None,
    batch_sizes: tuple[str, ...],
    seconds: float,
    as_json: bool,
) -> None:
    """Measure how long encode, decode, reconstruct and generate take on this machine.

    Times are those of calls of the Python API, with its checks; reconstruct is given noise, generate draws its own.
    Of a program by its sites each draws its own, and elbo is measured too.
    Warm-up calls are not counted. A p99 needs some hundred calls: raise --seconds until there are as many.

    \b
    Examples:
      vae-run bench models/digits-mlp --seconds 0.1
      vae-run bench models/digits-mlp --batch-size 1,64 --seconds 0.05 --threads 1 --json
    """
    with messages(), open_bundle(bundle, provider, threads, precision, public_key) as model:
        sizes = _parsed_sizes(batch_sizes)
        used = threads or usable_cpus()
        calls = [(name, size, call) for size in sizes for name, call in _calls(model, size)]
        timings = []
        with progress(len(calls), "measuring", no_bar_below=1) as advance:
            for name, size, call in calls:
                timings.append(_measure(name, size, call, seconds))
                advance(1)
        print_result(
            as_json,
            _timings_text(model, used, timings),
            name=model.manifest.name,
            provider=model.provider,
            precision=precision,
            threads=used,
            timings=[msgspec.to_builtins(timing) for timing in timings],
        )


def _parsed_sizes(texts: tuple[str, ...]) -> list[int]:
    try:
        sizes = [int(size) for text in texts for size in text.split(",")]
    except ValueError as error:
        raise InputError(f"--batch-size must be integers, like 1,32,256, got {','.join(texts)}") from error
    if min(sizes) < 1:
        raise InputError(f"--batch-size must be at least 1, got {min(sizes)}")
    return sizes


def _calls(model: Model | Program, size: int) -> list[tuple[str, Callable[[], object]]]:
    """Return calls on random rows, of the methods whose graphs the bundle has."""
    if isinstance(model, Program):
        return by_site.calls(model, size)
    noise = Noise(0)
    x = noise.uniform(size * model.manifest.model.data_dim).reshape(size, -1)
    if model.manifest.preprocessing is not None:
        x = model.manifest.preprocessing.raw(x)
    eps = noise.standard_normal((size, model.z_dim))
    y = 0 if model.num_classes else None
    methods: dict[str, tuple[str, Callable[[], object]]] = {
        "encode": ("encoder", lambda: model.encode(x, y=y)),
        "decode": ("decoder", lambda: model.decode(eps, y=y)),
        "reconstruct": ("reconstruct", lambda: model.reconstruct(x, y=y, eps=eps)),
        "generate": ("decoder", lambda: model.generate(size, 0, y=y)),
    }
    return [(name, call) for name, (graph, call) in methods.items() if graph in model.manifest.graphs]


def _measure(method: str, size: int, call: Callable[[], object], seconds: float) -> Timing:
    for _ in range(_WARM_UP_CALLS):
        call()
    taken: list[int] = []
    end = time.perf_counter_ns() + round(seconds * 1e9)
    start = time.perf_counter_ns()
    while start < end or len(taken) < _MIN_CALLS:
        call()
        stop = time.perf_counter_ns()
        taken.append(stop - start)
        start = stop
    ms = np.array(taken) / 1e6
    median, p99 = (float(value) for value in np.percentile(ms, [50, 99]))
    return Timing(method, size, len(ms), median, p99, size * len(ms) / (float(ms.sum()) / 1e3))


def _timings_text(model: Model | Program, threads: int, timings: list[Timing]) -> str:
    header = f"{'method':11}  {'batch':>6}  {'median ms':>10}  {'p99 ms':>10}  {'rows/s':>12}  {'calls':>7}"
    lines = [
        f"{timing.method:11}  {timing.batch_size:>6}  {timing.median_ms:>10.3f}  {timing.p99_ms:>10.3f}  "
        f"{timing.rows_per_second:>12,.0f}  {timing.calls:>7}"
        for timing in timings
    ]
    where = f"{model.manifest.name} in {model.precision} on {model.provider}, {threads} thread{'s' * (threads != 1)}"
    return "\n".join([where, header, *lines])


@click.command(cls=SectionedCommand, short_help="Print a shell's completion script for vae-run.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script with which a shell completes commands, options and files of vae-run.

    \b
    For every new shell, add a line to its configuration:
      bash  ~/.bashrc                   eval "$(vae-run completion bash)"   (bash 4.4 or newer)
      zsh   ~/.zshrc                    eval "$(vae-run completion zsh)"
      fish  ~/.config/fish/config.fish  vae-run completion fish | source

    \b
    Examples:
      vae-run completion bash
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise click.ClickException(f"this version of click cannot complete in {shell}")
    with messages():
        click.echo(kind(ctx.find_root().command, {}, _PROGRAM, _COMPLETION_VARIABLE).source())


@click.command(cls=SectionedCommand, short_help="Check what this machine can run, and say what to fix.")
@json_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check what this machine can run: versions, providers, threads, and what to install.

    Each provider is tried with a small graph. The exit code is 1 if there is something to fix.

    \b
    Examples:
      vae-run doctor
      vae-run doctor --json
    """
    with messages():
        found = diagnose()
        print_result(as_json, _diagnosis_text(found), **msgspec.structs.asdict(found))
    if found.problems:
        ctx.exit(FAILED)


def _diagnosis_text(found: Diagnosis) -> str:
    def listed(versions: dict[str, str]) -> str:
        return ", ".join(f"{name} {version}" for name, version in versions.items()) or "none"

    lines = [
        ("system", found.system),
        ("packages", listed(found.versions)),
        ("ONNX Runtime", listed(found.wheels)),
        ("threads", f"{found.threads} of {found.cpus} CPUs, by affinity and quota"),
        *(("provider", f"{check.name}: {'works' if check.works else check.obstacle}") for check in found.providers),
        *(("to fix", problem) for problem in found.problems),
    ]
    return "\n".join(f"{label:12}  {text}" for label, text in lines)
