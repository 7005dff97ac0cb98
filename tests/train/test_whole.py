"""Files and folders: after a kill or a full disk at any step, the old one or the new one, whole."""

from __future__ import annotations

import errno
import functools
import os
import shutil
from pathlib import Path

import pytest

from edgevae.train import whole
from tests.killing import DONE, contents, fork, killed_at_each_step, refused_at_each_step, wait


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that need not turn: what is killed here is a process, not the power."""
    monkeypatch.setattr("os.fsync", lambda _descriptor: None)


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def write_folder(out: Path, content: bytes, *, replace: bool = True) -> None:
    with whole.whole_folder(out, replace=replace) as folder:
        for name in ("a", "b"):
            (folder / name).write_bytes(content)


def fill(out: Path, content: bytes) -> None:
    out.mkdir()
    for name in ("a", "b"):
        (out / name).write_bytes(content)


@pytest.mark.parametrize("is_there", [False, True])
def test_a_folder_is_old_or_new_after_a_kill_at_any_step(tmp_path: Path, quick: None, is_there: bool) -> None:
    out, old, new = tmp_path / "out", {"a": b"old", "b": b"old"}, {"a": b"new", "b": b"new"}
    if is_there:
        fill(out, b"old")
    found = []
    for _ in killed_at_each_step(lambda: write_folder(out, b"new"), tmp_path):
        found.append(contents(out))
        write_folder(out, b"old")
        assert names(tmp_path) == ["out"], "the next one takes over what a kill left"
        if not is_there:
            shutil.rmtree(out)
    assert len(found) >= (12 if is_there else 9)
    assert [state for state in found if state not in ([old, new] if is_there else [{}, new])] == []
    assert found[-1] == new, "what comes last is to remove the old one"


def test_where_folders_cannot_be_exchanged_the_old_one_comes_back(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole, "_exchanged", lambda _first, _second: False)
    out, missing = tmp_path / "out", 0
    fill(out, b"old")
    for _ in killed_at_each_step(lambda: write_folder(out, b"new"), tmp_path):
        missing += not out.exists()
        with pytest.raises(InterruptedError), whole.whole_folder(out, replace=True):
            raise InterruptedError
        assert contents(out) in ({"a": b"old", "b": b"old"}, {"a": b"new", "b": b"new"})
        write_folder(out, b"old")
        assert names(tmp_path) == ["out"]
    assert missing == 1, "between two renames, and nowhere else"


@pytest.mark.parametrize("is_there", [False, True])
def test_a_folder_that_cannot_be_written_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, quick: None, is_there: bool
) -> None:
    out = tmp_path / "out"
    if is_there:
        fill(out, b"old")
    before = contents(tmp_path)
    outcomes = []
    for outcome in refused_at_each_step(lambda: write_folder(out, b"new"), tmp_path, errno.ENOSPC):
        outcomes.append(outcome)
        if outcome == DONE:  # the new one was in its place already
            assert contents(tmp_path) == {"out/a": b"new", "out/b": b"new"}
            shutil.rmtree(out)
            if is_there:
                fill(out, b"old")
        else:
            assert "No space left on device" in outcome
            assert contents(tmp_path) == before
    assert len(outcomes) >= 9


def test_what_is_flushed_is_flushed_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    flush, exchange, replace = os.fsync, whole._exchanged, Path.replace

    def flushed(descriptor: int) -> None:
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        flush(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        events.append("renamed")
        return replace(path, target)

    def exchanged(first: Path, second: Path) -> bool:
        events.append("renamed")
        return exchange(first, second)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to know which file a descriptor is of")
    fill(tmp_path / "out", b"old")
    monkeypatch.setattr("os.fsync", flushed)
    monkeypatch.setattr(Path, "replace", renamed)
    monkeypatch.setattr(whole, "_exchanged", exchanged)
    whole.write_whole(tmp_path / "file", b"content")
    assert events == [".file.part", "renamed", tmp_path.name]
    events.clear()
    write_folder(tmp_path / "out", b"new")
    assert sorted(events[:2]) == ["a", "b"]
    assert events[2:] == [".out.part", "renamed", tmp_path.name]


def test_of_two_that_write_a_folder_at_once_the_second_is_told(tmp_path: Path) -> None:
    with whole.whole_folder(tmp_path / "out", replace=False) as folder:
        (folder / "a").write_bytes(b"first")
        with pytest.raises(whole.BusyError, match="another process is writing it"):
            write_folder(tmp_path / "out", b"second")
    assert contents(tmp_path) == {"out/a": b"first"}
    with pytest.raises(OSError, match="not empty"):
        write_folder(tmp_path / "out", b"third", replace=False)
    assert contents(tmp_path) == {"out/a": b"first"}


def test_of_many_that_write_a_file_at_once_one_wins_whole(tmp_path: Path) -> None:
    def write(content: bytes) -> None:
        for _ in range(50):
            whole.write_whole(tmp_path / "file", content * 100_000)

    children = [fork(functools.partial(write, content)) for content in (b"a", b"b", b"c")]
    for _ in range(200):
        if (tmp_path / "file").exists():
            content = (tmp_path / "file").read_bytes()
            assert (len(content), len(set(content))) == (100_000, 1)
    assert [wait(child) for child in children] == [0, 0, 0]
    assert names(tmp_path) == ["file"]


def test_a_link_under_the_hidden_name_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / ".file.part").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic link"):
        whole.write_whole(tmp_path / "file", b"content")
    assert (tmp_path / "precious").read_bytes() == b"precious"
