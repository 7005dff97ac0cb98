"""What the command line writes: after a kill or a full disk at any step, the old file or the new one, whole."""

from __future__ import annotations

import errno
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
from edgevae.whole import written_whole
from tests.killing import DONE, contents, in_fork, killed_at_each_step, refused_at_each_step

BUNDLE = Path(__file__).parents[2] / "models" / "digits-mlp"
ROWS = np.linspace(0, 1, 20, dtype=np.float32).reshape(5, 4)
Write = Callable[[Path], object]
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


def test_a_full_disk_is_said_and_leaves_the_old_file_and_nothing_else(tmp_path: Path, suffix: str) -> None:
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
def test_a_command_that_computes_for_long_and_cannot_write_has_one_line_to_say(tmp_path: Path, suffix: str) -> None:
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

        def write() -> str:
            if os.geteuid() == 0:  # whom no permission binds
                os.setuid(65534)
            try:
                WRITERS[".npy"](out)
            except OSError as error:
                return str(error)
            return "written"

        assert in_fork(write).startswith(f"{out} could not be written, and is as it was: Permission denied; make room")
        assert names(Path(folder)) == []


def test_a_folder_that_vanishes_is_named(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "x.txt"
    path.parent.mkdir()

    def write() -> None:
        with written_whole(path):
            shutil.rmtree(path.parent)

    with pytest.raises(OSError, match=r"the folder .*folder is not there any more; make it again"):
        write()


def test_an_error_of_something_else_is_not_taken_for_one_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"^the input$"), written_whole(tmp_path / "x.txt"):
        raise OSError("the input")
    assert names(tmp_path) == []


def test_of_two_that_write_a_file_at_once_the_second_is_told(tmp_path: Path) -> None:
    with written_whole(tmp_path / "x.txt") as part:
        part.write_text("first")
        with (
            pytest.raises(OSError, match="another process is writing it; wait for it, or choose another name"),
            written_whole(tmp_path / "x.txt"),
        ):
            pytest.fail("both write it")
    assert contents(tmp_path) == {"x.txt": b"first"}


def test_a_link_under_the_hidden_name_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / ".x.part.txt").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="could not be written"), written_whole(tmp_path / "x.txt"):
        pytest.fail("the link was followed")
    assert (tmp_path / "precious").read_bytes() == b"precious"
