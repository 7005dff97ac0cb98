"""Files and folders that are written: after a kill or a full disk at any step, the old content or the new, complete."""

from __future__ import annotations

import errno
import functools
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from click.testing import CliRunner

from edgevae import Latents
from edgevae.cli import main
from edgevae.cli.outputs import save_picture, save_rows
from edgevae.files import BusyError, replace_file, replace_folder, write_file
from tests.killing import (
    DONE,
    contents,
    error_without_permission,
    fork,
    in_fork,
    killed_at_each_step,
    refused_at_each_step,
    wait,
)

BUNDLE = Path(__file__).parents[2] / "models" / "digits-mlp"
ROWS = np.linspace(0, 1, 20, dtype=np.float32).reshape(5, 4)
Write = Callable[[Path], object]
OLD, NEW = {"a": b"old", "b": b"old"}, {"a": b"new", "b": b"new"}
WRITERS: dict[str, Write] = {
    ".npy": lambda path: save_rows(path, a=ROWS),
    ".npz": lambda path: save_rows(path, {"name": np.array("x")}, a=ROWS, b=ROWS[:, 0]),
    ".csv": lambda path: save_rows(path, a=ROWS),
    ".json": lambda path: save_rows(path, a=ROWS),
    ".png": lambda path: save_picture(path, ROWS, (1, 2, 2), 3),
    ".latents.npz": lambda path: Latents.of(ROWS, "space").save(path),
}


@pytest.fixture(params=WRITERS)
def suffix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_file_is_old_or_new_after_a_kill_at_any_step(tmp_path: Path, suffix: str) -> None:
    path, write = tmp_path / f"x{suffix}", WRITERS[suffix]
    write(path)
    new, found = path.read_bytes(), []
    path.write_bytes(b"old")
    for _ in killed_at_each_step(lambda: write(path), tmp_path):
        found.append(path.read_bytes())
        write(path)
        assert contents(tmp_path) == {path.name: new}, "the next one takes over what a kill left"
        path.write_bytes(b"old")
    assert set(found) == {b"old", new}
    assert found[-1] == new
    assert len(found) >= 6


def test_a_full_disk_is_an_error_and_leaves_only_the_old_file(tmp_path: Path, suffix: str) -> None:
    path, write = tmp_path / f"x{suffix}", WRITERS[suffix]
    write(path)
    new = path.read_bytes()
    path.write_bytes(b"old")
    outcomes = list(refused_at_each_step(lambda: write(path), tmp_path, errno.ENOSPC))
    assert len(outcomes) >= 3
    assert contents(tmp_path) == {path.name: new}, "the last one is refused nothing"
    path.write_bytes(b"old")
    for limit in range(0, len(new), 1 + len(new) // 5):

        def limited(limit: int = limit) -> str:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            with pytest.raises(OSError, match="could not be written") as caught:
                write(path)
            return str(caught.value)

        outcomes.append(in_fork(limited))
        assert contents(tmp_path) == {path.name: b"old"}
    for outcome in outcomes:
        assert outcome == DONE or f"{path} could not be written, and is as it was: " in outcome
        assert outcome == DONE or any(reason in outcome for reason in ("No space left on device; ", "File too large; "))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with 64 kB."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mounted)]
    try:
        failed = subprocess.run(command, check=False, capture_output=True).returncode
    except FileNotFoundError:
        failed = 1
    if failed:
        pytest.skip("a file system can be mounted by root only, and not in every container")
    yield mounted
    subprocess.run(["umount", mounted], check=True)


def test_on_a_full_disk_a_command_says_so_and_leaves_nothing(small_disk: Path) -> None:
    for suffix in (".npy", ".npz"):
        out = small_disk / f"x{suffix}"
        result = CliRunner().invoke(main, ["generate", str(BUNDLE), "-n", "1000", "--out", str(out)])
        assert result.exit_code == 2
        assert result.output == (
            f"Error: {out} could not be written, and is as it was: No space left on device; "
            "make room there, or see to the folder's permissions\n"
        )
        assert names(small_disk) == []


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_a_long_command_that_cannot_write_prints_one_line(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"x{suffix}"

    def encode() -> str:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        result = CliRunner().invoke(main, ["encode", str(BUNDLE), str(BUNDLE / "reference.npz"), "--out", str(out)])
        return f"{result.exit_code} {result.output}"

    output = in_fork(encode)
    assert output.startswith(f"2 Error: {out} could not be written, and is as it was: File too large; ")
    assert output.count("\n") == 1
    assert names(tmp_path) == []


def test_a_folder_that_may_not_be_written_to_is_named() -> None:
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        out = Path(folder) / "x.npy"
        error = error_without_permission(lambda: WRITERS[".npy"](out))
        assert error.startswith(f"{out} could not be written, and is as it was: Permission denied; make room")
        assert names(Path(folder)) == []


def test_a_folder_that_vanishes_is_named(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "x.txt"
    path.parent.mkdir()

    def write() -> None:
        with replace_file(path):
            shutil.rmtree(path.parent)

    with pytest.raises(OSError, match=r"the folder .*folder is not there any more; make it again"):
        write()


def test_an_unrelated_error_is_not_reported_as_a_write_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"^the input$"), replace_file(tmp_path / "x.txt"):
        raise OSError("the input")
    assert names(tmp_path) == []


def test_the_second_of_two_concurrent_writers_of_a_file_is_refused(tmp_path: Path) -> None:
    with replace_file(tmp_path / "x.txt") as part:
        part.write_text("first")
        with (
            pytest.raises(OSError, match="another process is writing it; wait for it, or choose another name"),
            replace_file(tmp_path / "x.txt"),
        ):
            pytest.fail("both write it")
    assert contents(tmp_path) == {"x.txt": b"first"}


def test_a_link_at_the_temporary_name_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / ".x.part.txt").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="could not be written"), replace_file(tmp_path / "x.txt"):
        pytest.fail("the link was followed")
    assert (tmp_path / "precious").read_bytes() == b"precious"


def write_folder(out: Path, content: bytes, *, replace: bool = True) -> None:
    with replace_folder(out, replace=replace) as folder:
        for name in ("a", "b"):
            (folder / name).write_bytes(content)


def fill(out: Path, content: bytes) -> None:
    out.mkdir()
    for name in ("a", "b"):
        (out / name).write_bytes(content)


def test_a_new_folder_is_there_completely_or_not_at_all_after_a_kill_at_any_step(
    tmp_path: Path, no_fsync: None
) -> None:
    out, found = tmp_path / "out", []
    for _ in killed_at_each_step(lambda: write_folder(out, b"new"), tmp_path):
        found.append(contents(out))
        write_folder(out, b"old")
        assert names(tmp_path) == ["out"], "the next one takes over what a kill left"
        shutil.rmtree(out)
    assert len(found) >= 9
    assert [state for state in found if state not in ({}, NEW)] == []


def test_a_replaced_folder_is_old_or_new_after_a_kill_at_any_step_but_one(tmp_path: Path, no_fsync: None) -> None:
    out, found = tmp_path / "out", []
    fill(out, b"old")
    for _ in killed_at_each_step(lambda: write_folder(out, b"new"), tmp_path):
        found.append(contents(out))
        write_folder(out, b"old")
        assert names(tmp_path) == ["out"], "the next one takes over what a kill left"
    assert len(found) >= 12
    assert [state for state in found if state not in (OLD, NEW)] == [{}], "between two renames, and nowhere else"
    assert found[-1] == NEW, "what comes last is to remove the old one"


def test_a_kill_between_the_two_renames_leaves_the_old_folder_for_the_next_one_to_put_back(
    tmp_path: Path, no_fsync: None
) -> None:
    out, missing = tmp_path / "out", 0
    fill(out, b"old")
    for _ in killed_at_each_step(lambda: write_folder(out, b"new"), tmp_path):
        if not out.exists():
            missing += 1
            assert contents(tmp_path / ".out.old") == OLD
        with pytest.raises(InterruptedError), replace_folder(out, replace=True):
            raise InterruptedError
        assert contents(out) in (OLD, NEW)
        assert names(tmp_path) == ["out"]
        write_folder(out, b"old")
    assert missing == 1


@pytest.mark.parametrize("is_there", [False, True])
def test_a_folder_that_cannot_be_written_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, no_fsync: None, is_there: bool
) -> None:
    out = tmp_path / "out"
    if is_there:
        fill(out, b"old")
    before = contents(tmp_path)
    outcomes, moved = [], 0
    for outcome in refused_at_each_step(lambda: write_folder(out, b"new"), tmp_path, errno.ENOSPC):
        outcomes.append(outcome)
        if outcome == DONE:  # the new one was in its place already
            assert contents(tmp_path) == {"out/a": b"new", "out/b": b"new"}
            shutil.rmtree(out)
            if is_there:
                fill(out, b"old")
            continue
        assert "No space left on device" in outcome
        if ".out.old" in outcome:  # it could not be renamed back either
            (tmp_path / ".out.old").rename(out)
            moved += 1
        assert contents(tmp_path) == before
    assert len(outcomes) >= 9
    assert moved == int(is_there)


def test_files_are_flushed_before_they_are_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    flush = os.fsync

    def flushed(descriptor: int) -> None:
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        flush(descriptor)

    def noting(rename: Callable[..., None]) -> Callable[..., None]:
        def renamed(source: str, target: str) -> None:
            events.append("renamed")
            rename(source, target)

        return renamed

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to know which file a descriptor is of")
    fill(tmp_path / "out", b"old")
    monkeypatch.setattr("os.fsync", flushed)
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, noting(getattr(os, name)))
    write_file(tmp_path / "file", b"content")
    assert events == [".file.part", "renamed", tmp_path.name]
    events.clear()
    write_folder(tmp_path / "out", b"new")
    assert sorted(events[:2]) == ["a", "b"]
    assert events[2:] == [".out.part", "renamed", "renamed", tmp_path.name, tmp_path.name]


def test_the_second_of_two_concurrent_writers_of_a_folder_is_refused(tmp_path: Path) -> None:
    with replace_folder(tmp_path / "out", replace=False) as folder:
        (folder / "a").write_bytes(b"first")
        with pytest.raises(BusyError, match="another process is writing it"):
            write_folder(tmp_path / "out", b"second")
    assert contents(tmp_path) == {"out/a": b"first"}
    with pytest.raises(OSError, match="not empty"):
        write_folder(tmp_path / "out", b"third", replace=False)
    assert contents(tmp_path) == {"out/a": b"first"}


def test_of_many_concurrent_writers_of_a_file_one_wins_completely(tmp_path: Path) -> None:
    def write(content: bytes) -> None:
        for _ in range(50):
            write_file(tmp_path / "file", content * 100_000)

    children = [fork(functools.partial(write, content)) for content in (b"a", b"b", b"c")]
    for _ in range(200):
        if (tmp_path / "file").exists():
            content = (tmp_path / "file").read_bytes()
            assert (len(content), len(set(content))) == (100_000, 1)
    assert [wait(child) for child in children] == [0, 0, 0]
    assert names(tmp_path) == ["file"]
