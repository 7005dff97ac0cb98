"""Kill a program at each of its file operations in turn, or let each fail as on a full disk.

The program runs in a fork of this process. A step is an operation that changes files: one that Python audits, a file
that was just opened for writing (and is empty), or a flush to the disk.
"""

from __future__ import annotations

import builtins
import io
import itertools
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_REMOVALS = {"os.remove", "os.rmdir"}
_CHANGES = {"os.rename", "os.mkdir", "os.chmod", "os.truncate", "os.link", "os.symlink", *_REMOVALS}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_SECONDS = 120

DONE = "done"


def killed_at_each_step(program: Callable[[], object], within: Path) -> Iterator[int]:
    """Run a program again and again, killed (SIGKILL) before its first step, its second, ...; yield after each kill.

    The iteration ends when the program ends by itself.

    Args:
        program: Called in the fork.
        within: Only files in this folder count when they are opened.
    """
    step = 0
    while _killed(program, within, step):
        step += 1
        yield step


def refused_at_each_step(program: Callable[[], object], within: Path, number: int) -> Iterator[str]:
    """Run a program again and again; let its steps fail from the first on, from the second, ...

    Steps fail with the error `number`, except removals. Yield the outcome of each run: the error's class and message,
    or `DONE`. The iteration ends when no step fails.
    """
    for step in itertools.count():
        was_refused, _, outcome = in_fork(lambda: _refused_from(step, program, within, number)).partition(" ")  # noqa: B023 - called at once
        if was_refused == "False":
            return
        yield outcome


def contents(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files in a folder, hidden ones too, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def in_fork(program: Callable[[], str]) -> str:
    """Call a program in a fork of this process, and return its answer."""
    reading, writing = os.pipe()

    def answer() -> None:
        os.close(reading)
        with os.fdopen(writing, "w") as pipe:
            pipe.write(program())

    child = fork(answer)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    assert wait(child) == 0, text
    return text


def error_without_permission(program: Callable[[], object]) -> str:
    """Call a program in a fork that is not root, and return the message of its error."""

    def run() -> str:
        if os.geteuid() == 0:  # permissions do not bind root
            os.setuid(65534)
        try:
            program()
        except Exception as error:  # noqa: BLE001 - the test looks at it
            return str(error)
        return DONE

    return in_fork(run)


def fork(program: Callable[[], object]) -> int:
    """Start a program in a fork of this process, and return its id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # forks beside threads are safe here: the fork uses no thread
        child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.alarm(_SECONDS)
        program()
        code = 0
    except BaseException:  # noqa: BLE001 - a fork must not run the other tests
        traceback.print_exc()
    finally:
        os._exit(code)


def wait(child: int) -> int:
    """Wait for a fork; return its exit code, or the number of the signal that ended it, negative."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _refused_from(first: int, program: Callable[[], object], within: Path, number: int) -> str:
    was_refused = False

    def refuse(event: str, count: int) -> None:
        nonlocal was_refused
        if count > first and event not in _REMOVALS:
            was_refused = True
            raise OSError(number, os.strerror(number))

    _arm(refuse, within)
    try:
        program()
    except Exception as error:  # noqa: BLE001 - whatever it is, the test looks at it
        return f"{was_refused} {type(error).__name__}: {error}"
    return f"{was_refused} {DONE}"


def _killed(program: Callable[[], object], within: Path, step: int) -> bool:
    def run() -> None:
        _arm(lambda _event, count: os.kill(os.getpid(), signal.SIGKILL) if count > step else None, within)
        program()

    code = wait(fork(run))
    assert code in {0, -signal.SIGKILL}, code
    return code != 0


def _arm(act: Callable[[str, int], object], within: Path) -> None:
    """Call `act` before each step, with its name and number. This cannot be undone: Python removes no audit hook."""
    count = 0

    def step(event: str) -> None:
        nonlocal count
        count += 1
        act(event, count)

    def is_written(path: object, flags: int) -> bool:
        here = isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(str(within))
        return here and bool(flags & _WRITES)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _CHANGES or (event == "open" and is_written(arguments[0], arguments[2])):
            step(event)

    real_open, real_fsync = io.open, os.fsync

    def open_file(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        opened = real_open(file, mode, *arguments, **options)
        if set(mode) & set("wax+") and is_written(file, os.O_WRONLY):
            step("opened")
        return opened

    def fsync(descriptor: Any) -> None:
        step("fsync")
        real_fsync(descriptor)

    io.open = open_file
    builtins.open = open_file
    os.fsync = fsync  # type: ignore[assignment]  # ours has a simpler signature
    sys.addaudithook(audit)
