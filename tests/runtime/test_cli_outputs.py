"""What `vae-run` writes: each file whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgevae import InputError
from edgevae.cli.outputs import check_picture, rows_file, save_rows
from edgevae.files import replace_file


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", ".json"])
def test_rows_written_in_parts_give_the_same_file_as_at_once(tmp_path: Path, suffix: str) -> None:
    columns: dict[str, NDArray[Any]] = {
        "a": np.random.default_rng(0).random((10, 3), np.float32),
        "b": np.arange(10),
    }
    others = {"name": np.array("x")}
    save_rows(tmp_path / f"whole{suffix}", others, **columns)
    with rows_file(tmp_path / f"parts{suffix}", 10, others) as append:
        for start in (0, 4, 8):
            append(**{name: column[start : start + 4] for name, column in columns.items()})
    whole = (tmp_path / f"whole{suffix}").read_bytes()
    assert whole == (tmp_path / f"parts{suffix}").read_bytes()
    if suffix == ".npy":
        np.testing.assert_array_equal(np.load(tmp_path / "whole.npy"), columns["a"])
    elif suffix == ".npz":
        with np.load(tmp_path / "whole.npz", allow_pickle=False) as written:
            np.testing.assert_array_equal(written["a"], columns["a"])
            np.testing.assert_array_equal(written["b"], columns["b"])
            assert str(written["name"]) == "x"
    elif suffix == ".csv":
        lines = [line.split(",") for line in whole.decode().splitlines()]
        assert lines[0] == ["a[0]", "a[1]", "a[2]", "b"]
        np.testing.assert_array_equal(np.array(lines[1:], np.float64)[:, :3], columns["a"])
    else:
        assert json.loads(whole) == {"a": columns["a"].tolist(), "b": list(range(10)), "name": "x"}


def test_json_holds_null_for_nan_and_infinity(tmp_path: Path) -> None:
    save_rows(tmp_path / "x.json", a=np.array([1.5, np.nan, np.inf]))
    assert json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail) == {"a": [1.5, None, None]}


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", ".json"])
@pytest.mark.parametrize("error", [InputError, KeyboardInterrupt])
def test_an_error_while_writing_keeps_the_old_file_and_leaves_no_other(
    tmp_path: Path, suffix: str, error: type[BaseException]
) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_text("before")

    def write() -> None:
        with rows_file(path, 10) as append:
            append(a=np.zeros((5, 2)))
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_missing_rows_are_an_error(tmp_path: Path, suffix: str) -> None:
    def write() -> None:
        with rows_file(tmp_path / f"x{suffix}", 10) as append:
            append(a=np.zeros((5, 2)))

    with pytest.raises(RuntimeError, match="5 rows were written, expected 10"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_rows_that_are_not_images_are_not_drawn() -> None:
    with pytest.raises(InputError, match=r"a picture needs 1 or 3 channels, this model's data_shape is \(2, 8, 8\)"):
        check_picture((2, 8, 8))
    check_picture((3, 8, 8))


def test_a_link_still_leads_to_the_file_that_was_written(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.txt").symlink_to(tmp_path / "real" / "x.txt")
    with replace_file(tmp_path / "link.txt") as unfinished:
        unfinished.write_text("text")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real" / "x.txt").read_text() == "text"
