"""What the commands share: arguments and options, errors as messages, the answer as text or as JSON."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import click
import msgspec
from click.shell_completion import CompletionItem

from ..errors import EdgeVAEError
from ..manifest import Precision
from ..model import load
from .outputs import check_picture

FAILED = 1
BAD_INPUT = 2
_INTERRUPTED = 130  # what a shell says of a process that Ctrl-C ended
_SHORT_ROWS = 2048  # no bar below, the work is done before one could be read
_COMMON_PROVIDERS = ("auto", "cpu", "cuda")

BLOCK_ROWS = 1024
"""Rows for which noise is drawn at once; as many run at once, if nothing else is asked for."""


def _complete_folder(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="dir")]


bundle_argument = click.argument("bundle", type=click.Path(path_type=Path), shell_complete=_complete_folder)
inputs_argument = click.argument("inputs", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
y_option = click.option("--y", type=int, help="Label of all rows, for a conditional model.")
labels_option = click.option(
    "--labels",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with a label a row, .npy or IDX, instead of --y.",
)
batch_size_option = click.option(
    "--batch-size", type=click.IntRange(min=1), default=BLOCK_ROWS, help="Rows that run at once."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


def seed_option(default: int | None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option --seed."""
    kind = click.IntRange(0, 2**64 - 1)
    return click.option("--seed", type=kind, default=default, help="Noise stream, the same as PyTorch's on the CPU.")


class _OutFile(click.Path):
    """A file that a command can write: its suffix says what, and its folder is there."""

    def __init__(self, suffixes: tuple[str, ...]) -> None:
        super().__init__(dir_okay=False, path_type=Path)
        self._suffixes = suffixes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path: Any = super().convert(value, param, ctx)
        if path.suffix.lower() not in self._suffixes:
            self.fail(f"must end in {_either(self._suffixes)}, got {path}", param, ctx)
        if not path.parent.is_dir():
            self.fail(f"the folder {path.parent} is not there; make it first", param, ctx)
        return path


def out_option(*suffixes: str, required: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option --out of a command that writes files with these suffixes."""
    text = f"The file to write: {_either(suffixes)}."
    return click.option("--out", type=_OutFile(suffixes), required=required, help=text)


def _either(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


def _complete_provider(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in _COMMON_PROVIDERS if name.startswith(incomplete)]


provider_option = click.option(
    "--provider",
    default="auto",
    shell_complete=_complete_provider,
    help="Where to run: auto, cpu, cuda, or another of ONNX Runtime's, like openvino.",
)
threads_option = click.option(
    "--threads", type=click.IntRange(1, 1024), help="Threads in an operator.  [default: all CPUs]"
)


precision_option = click.option(
    "--precision", type=click.Choice(get_args(Precision)), default="fp32", help="Precision of the networks."
)
public_key_option = click.option(
    "--public-key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    envvar="EDGEVAE_PUBLIC_KEY",
    show_envvar=True,
    help="Refuse the bundle unless it was signed with this key's private half; Ed25519, PEM.",
)


def runs_a_model(command: Callable[..., None]) -> Callable[..., None]:
    """Add what running a model needs: the command is given the `model`, and its errors become messages.

    What cannot be drawn is refused before the command begins.
    """

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
        with messages(), load(bundle, provider, threads, precision=precision, public_key=public_key) as model:
            out = options.get("out")
            if out is not None and out.suffix.lower() == ".png":
                check_picture(model.data_shape)
            command(model, **options)

    return run


class _BadInput(click.ClickException):
    exit_code = BAD_INPUT


@contextlib.contextmanager
def messages() -> Iterator[None]:
    """Show the runtime's errors, and those of files, as messages with exit code 2."""
    try:
        yield
    except BrokenPipeError:  # whoever read the output has gone, which click knows how to take
        raise
    except (EdgeVAEError, OSError) as error:
        raise _BadInput(str(error)) from error
    except KeyboardInterrupt as error:
        raise click.exceptions.Exit(_INTERRUPTED) from error


@contextlib.contextmanager
def progress(length: int, label: str, short: int = _SHORT_ROWS) -> Iterator[Callable[[int], None]]:
    """Show a bar on the standard error, if that is a terminal and the work is long; call with what was done."""
    if length <= short or not sys.stderr.isatty():
        yield lambda _: None
        return
    with click.progressbar(length=length, label=label, file=sys.stderr, show_pos=True) as bar:
        yield bar.update


def of_all(count: int, total: int, what: str = "rows") -> str:
    """Say how many rows something holds, and of how many where those are not all."""
    return f"{count} {what}" if count == total else f"the first {count} of {total} {what}"


def answer(as_json: bool, text: str, **record: object) -> None:
    """Print what was done: the text, or the record as one line of JSON, in which no number is NaN or infinite."""
    click.echo(msgspec.json.encode(record, enc_hook=str) if as_json else text)
