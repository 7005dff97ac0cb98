"""The harness of `killing.py` finds files that are not written atomically."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edgevae.files import write_file
from tests.killing import contents, killed_at_each_step, refused_at_each_step

Write = Callable[[Path, bytes], object]


def in_place(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def without_a_flush(path: Path, content: bytes) -> None:
    path.with_name("part").write_bytes(content)
    path.with_name("part").rename(path)


def states(write: Write, path: Path) -> set[bytes]:
    """Return the contents that a file can have when writing b"new" over b"old" is killed at any step."""
    found = set()
    path.write_bytes(b"old")
    for _ in killed_at_each_step(lambda: write(path, b"new"), path.parent):
        found.add(path.read_bytes())
        path.write_bytes(b"old")
    return found


def test_writing_in_place_is_found_not_to_survive_a_kill(tmp_path: Path) -> None:
    assert states(in_place, tmp_path / "file") == {b"old", b""}


def test_a_file_that_is_written_aside_and_renamed_is_old_or_new(tmp_path: Path) -> None:
    assert states(write_file, tmp_path / "file") == {b"old", b"new"}


def test_each_step_is_refused_in_turn(tmp_path: Path) -> None:
    outcomes = list(refused_at_each_step(lambda: without_a_flush(tmp_path / "file", b"new"), tmp_path, errno.ENOSPC))
    assert outcomes == ["OSError: [Errno 28] No space left on device"] * 3, "to open, opened, to rename"
    assert contents(tmp_path) == {"file": b"new"}, "the last one is refused nothing"


@pytest.mark.parametrize("code", [0, 7])
def test_a_program_that_ends_by_itself_is_not_killed(tmp_path: Path, code: int) -> None:
    def end() -> None:
        os._exit(code)

    if code == 0:
        assert list(killed_at_each_step(end, tmp_path)) == []
    else:
        with pytest.raises(AssertionError, match="7"):
            list(killed_at_each_step(end, tmp_path))
