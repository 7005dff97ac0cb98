"""What a command prints: text that every terminal, file and pipe takes, JSON, error messages, a progress bar."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import Any

import click
import msgspec

from ..errors import EdgeVAEError

FAILED = 1
BAD_INPUT = 2
_INTERRUPTED = 130  # the exit code that shells report after Ctrl-C
_NO_BAR_ROWS = 2048  # with fewer rows the work is over before a bar could be read

_STAND_INS = {
    "→": "->",
    "−": "-",
    "–": "-",
    "—": "-",
    "…": "...",
    "×": "x",
    "·": "*",
    "‖": "||",
    "²": "^2",
    "⁸": "^8",
    "≤": "<=",
    "≥": ">=",
    "∝": "~",
    "σ": "sigma",
    "Σ": "sum",
    "β": "beta",
    "Φ": "Phi",
    "─": "-",
    "━": "-",
    "╸": "-",
    "╺": "-",
    "│": "|",
    "┃": "|",
    "‘": "'",
    "’": "'",
    "“": '"',
    "”": '"',
}
_BOX_DRAWING = re.compile("[─-╿]")
_STAND_IN_HANDLER = "edgevae.stand_in"


def make_output_safe() -> None:
    """Let standard output and error take any text, and survive a closed pipe.

    Characters that the encoding lacks are written in ASCII: `->` for an arrow and the like, else a backslash escape.
    When the reader of a pipe has gone (`| head`), the rest of the output is dropped, and the command finishes.

    Streams that replaced the process's own, as in a notebook or a test, stay as they are.
    """
    codecs.register_error(_STAND_IN_HANDLER, _stand_in)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and stream is getattr(sys, f"__{name}__"):
            setattr(sys, name, _SafeStream(stream))


def _stand_in(error: UnicodeError) -> tuple[str, int]:
    """Replace what an encoding lacks by ASCII; an error handler for `codecs.register_error`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = "".join(
        _STAND_INS.get(character)
        or ("+" if _BOX_DRAWING.match(character) else character.encode("ascii", "backslashreplace").decode("ascii"))
        for character in error.object[error.start : error.end]
    )
    return found, error.end


class _SafeStream(io.TextIOWrapper):
    """The process's standard output or error, which takes any text and survives a closed pipe."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        stream.flush()
        self._shown_in = stream.encoding
        # click writes UTF-8 to a stream that says it is ASCII. ASCII text is the same bytes in both.
        encoding = "utf-8" if codecs.lookup(stream.encoding).name == "ascii" else stream.encoding
        super().__init__(
            stream.buffer, encoding, line_buffering=stream.line_buffering, write_through=stream.write_through
        )

    def write(self, text: str, /) -> int:
        with self._without_reader():
            super().write(text.encode(self._shown_in, _STAND_IN_HANDLER).decode(self._shown_in))
        return len(text)

    def flush(self) -> None:
        with self._without_reader():
            super().flush()

    @contextlib.contextmanager
    def _without_reader(self) -> Iterator[None]:
        """Send the rest of the output to the null device once the pipe is closed."""
        try:
            yield
        except OSError as error:
            if error.errno != errno.EPIPE and not (os.name == "nt" and error.errno == errno.EINVAL):
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)


class _BadInput(click.ClickException):
    exit_code = BAD_INPUT


@contextlib.contextmanager
def messages() -> Iterator[None]:
    """Show errors of the runtime and of files as messages with exit code 2."""
    try:
        yield
    except (EdgeVAEError, OSError) as error:
        raise _BadInput(str(error)) from error
    except KeyboardInterrupt as error:
        raise click.exceptions.Exit(_INTERRUPTED) from error


def print_result(as_json: bool, text: str, **record: object) -> None:
    """Print what was done: the text, or the record as one line of JSON, with null for NaN and infinity."""
    if as_json:
        print_json(msgspec.json.encode(record, enc_hook=_path_text))
    else:
        click.echo(text)


def print_json(content: bytes) -> None:
    """Print JSON in pure ASCII, so that it is the same in every encoding."""
    click.echo(re.sub(r"[^\x00-\x7f]", lambda found: json.dumps(found[0])[1:-1], content.decode()).rstrip("\n"))


def printable(path: PurePath) -> str:
    """Return a path as text that every file can hold: bytes that are not UTF-8 as backslash escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _path_text(value: Any) -> str:
    return printable(value) if isinstance(value, PurePath) else str(value)


@contextlib.contextmanager
def progress(length: int, label: str, no_bar_below: int = _NO_BAR_ROWS) -> Iterator[Callable[[int], None]]:
    """Show a bar on standard error, if that is a terminal and the work is long.

    Yields:
        A function to call with the number of rows just done.
    """
    if length <= no_bar_below or not sys.stderr.isatty():
        yield lambda _: None
        return
    with click.progressbar(length=length, label=label, file=sys.stderr, show_pos=True) as bar:
        yield bar.update
