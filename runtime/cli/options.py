"""Arguments and options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click
from click.shell_completion import CompletionItem

from .. import Bundle, InputError, Model, Precision, Program, load, load_program
from .outputs import check_picture
from .sections import SectionOption
from .terminal import messages

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

COMPUTED, OUTPUT, LABELS, EXECUTION = "What to compute", "Output", "Labels", "Execution"
"""Headings of the options in `--help`."""

BLOCK_ROWS = 1024
"""Noise is drawn for this many rows at a time. It is also the default of `--batch-size`."""

_COMMON_PROVIDERS = ("auto", "cpu", "cuda")
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def option(section: str, *names: str, **settings: Any) -> Decorator:
    """Return an option that `--help` lists under a heading."""
    return click.option(*names, cls=SectionOption, section=section, **settings)


def _complete_folder(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="dir")]


def _complete_provider(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in _COMMON_PROVIDERS if name.startswith(incomplete)]


bundle_argument = click.argument("bundle", type=click.Path(path_type=Path), shell_complete=_complete_folder)
inputs_argument = click.argument("inputs", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
y_option = option(LABELS, "--y", type=int, help="Label of all rows, for a conditional model.")
labels_option = option(
    LABELS, "--labels", type=_FILE, help="File with a label for each row, .npy or IDX, instead of --y."
)
json_option = option(OUTPUT, "--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
batch_size_option = option(
    EXECUTION, "--batch-size", type=click.IntRange(min=1), default=BLOCK_ROWS, help="Rows that run at a time."
)
provider_option = option(
    EXECUTION,
    "--provider",
    default="auto",
    shell_complete=_complete_provider,
    help="Where to run: auto, cpu, cuda, or another provider of ONNX Runtime, like openvino.",
)
threads_option = option(
    EXECUTION, "--threads", type=click.IntRange(1, 1024), help="Threads in an operator.  [default: all CPUs]"
)
precision_option = option(
    EXECUTION, "--precision", type=click.Choice(get_args(Precision)), default="fp32", help="Precision of the networks."
)
public_key_option = option(
    EXECUTION,
    "--public-key",
    type=_FILE,
    envvar="EDGEVAE_PUBLIC_KEY",
    show_envvar=True,
    help="Refuse the bundle unless it was signed with the private key of this Ed25519 public key (PEM).",
)


def seed_option(default: int | None, text: str = "") -> Decorator:
    """Return the option --seed."""
    kind = click.IntRange(0, 2**64 - 1)
    text = f"Seed of the noise: the numbers are those of PyTorch's CPU generator.{text}"
    return option(COMPUTED, "--seed", type=kind, default=default, help=text)


class _OutFile(click.Path):
    """Path of a file that can be written: with one of some suffixes, in a folder that exists."""

    def __init__(self, suffixes: tuple[str, ...]) -> None:
        super().__init__(dir_okay=False, path_type=Path)
        self._suffixes = suffixes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path: Any = super().convert(value, param, ctx)
        if path.suffix.lower() not in self._suffixes:
            self.fail(f"must end in {_either(self._suffixes)}, got {path}", param, ctx)
        if not path.parent.is_dir():
            self.fail(f"the folder {path.parent} does not exist; make it first", param, ctx)
        return path


def out_option(*suffixes: str, required: bool = True) -> Decorator:
    """Return the option --out of a command that writes files with these suffixes."""
    return option(
        OUTPUT, "--out", type=_OutFile(suffixes), required=required, help=f"File to write: {_either(suffixes)}."
    )


def _either(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


def open_bundle(
    bundle: Path, provider: str, threads: int | None, precision: Precision, public_key: Path | None
) -> Model | Program:
    """Load a bundle of either kind."""
    by_site = Bundle(bundle, public_key).manifest.model.program is not None
    return (load_program if by_site else load)(bundle, provider, threads, precision=precision, public_key=public_key)


def with_model(by_site: Callable[..., None] | str | None = None) -> Decorator:
    """Give a command the loaded `model` and the options for loading it, and show its errors as messages.

    If `--out` is a picture that cannot be drawn, that is an error before the command begins.

    Args:
        by_site: What runs in place of the command where the bundle holds a program that is used by its sites, and
            takes the same options without those of labels; or why nothing does. By default the command itself.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @provider_option
        @threads_option
        @precision_option
        @public_key_option
        @functools.wraps(command)
        def run(
            bundle: Path,
            provider: str,
            threads: int | None,
            precision: Precision,
            public_key: Path | None,
            **options: Any,
        ) -> None:
            with messages(), open_bundle(bundle, provider, threads, precision, public_key) as model:
                if isinstance(model, Program):
                    if isinstance(by_site, str):
                        raise InputError(f"{bundle} holds a Pyro program that is used by its sites: {by_site}")
                    (by_site or command)(model, **_without_labels(model, options))
                    return
                if options.pop("arguments", None) is not None:
                    raise InputError("--arguments goes with a program that is used by its sites; leave it out")
                out = options.get("out")
                if out is not None and out.suffix.lower() == ".png":
                    check_picture(model.data_shape)
                command(model, **options)

        return run

    return decorate


def _without_labels(program: Program, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a command without those that choose labels and components, which a program does not have.

    Raises:
        InputError: One of those was given.
    """
    for name in ("y", "labels", "component"):
        if options.get(name) is not None:
            takes = ", ".join(argument.name for argument in program.arguments)
            raise InputError(
                f"--{name} goes with a model that sees labels or has components; this program takes {takes}, by name "
                "from an .npz file"
            )
    return {name: value for name, value in options.items() if name not in ("y", "labels", "component")}
