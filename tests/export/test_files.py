"""Bundles: after a kill or a full disk at any step, the old one or the new one, whole."""

from __future__ import annotations

import contextlib
import errno
import functools
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from edgevae import BundleError, Manifest, Report, load
from edgevae.export import ExportError, Source, bundle_writer, export_bundle
from edgevae.export.files import bundle_folder, write_file
from tests.killing import (
    DONE,
    contents,
    error_without_permission,
    fork,
    killed_at_each_step,
    refused_at_each_step,
    wait,
)

BUNDLE = Path(__file__).parents[2] / "models" / "digits-mlp"


Export = Callable[..., object]


@pytest.fixture
def files() -> dict[str, bytes]:
    """Some files of a bundle: as if they were all."""
    return {name: (BUNDLE / name).read_bytes() for name in ("README.md", "manifest.json", "encoder.onnx")}


@pytest.fixture
def prepared(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Export:
    """An export whose files were computed before; its card is what it is given."""

    def write(folder: Path, source: Source, *_choices: object, **_options: object) -> tuple[Report, ...]:
        for name, content in {**files, "README.md": source.samples_note.encode()}.items():
            (folder / name).write_bytes(content)
        return ()

    monkeypatch.setattr(bundle_writer, "write_bundle", write)

    def export(out: Path, card: str, *, overwrite: bool = True) -> None:
        nothing: Source = Source(out.name, None, None, card, None)  # type: ignore[arg-type]  # nothing is computed
        export_bundle(nothing, out, overwrite=overwrite)

    return export


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.mark.parametrize("is_there", [False, True])
def test_after_a_kill_at_any_step_a_bundle_is_old_or_new_or_the_next_export_restores_the_old_one(
    tmp_path: Path, files: dict[str, bytes], prepared: Export, no_fsync: None, is_there: bool
) -> None:
    out, found = tmp_path / "small", []
    if is_there:
        prepared(out, "old")
    for _ in killed_at_each_step(lambda: prepared(out, "new"), tmp_path):
        if out.exists():
            card = (out / "README.md").read_text()
            assert contents(out) == {**files, "README.md": card.encode()}
            found.append(card)
        else:
            found.append("none")
            if is_there:
                with pytest.raises(ExportError, match="already holds a bundle"):
                    prepared(out, "new", overwrite=False)
                assert (out / "README.md").read_text() == "old"
    prepared(out, "new")
    assert names(tmp_path) == ["small"], "the next one takes over what a kill left"
    print(f"{len(found)} kills of an export, an old bundle {'there' if is_there else 'not there'}")  # noqa: T201 - shown by pytest -s
    assert len(found) >= 3 * len(files)
    assert set(found) == {"old", "none", "new"} - ({"old"} if not is_there else set())
    assert not is_there or found.count("none") == 1, "between two renames, and nowhere else"


@pytest.mark.slow
def test_a_real_export_is_killed_at_every_step(source: Source, tmp_path: Path) -> None:
    out, found = tmp_path / "small", []

    def export() -> None:
        export_bundle(source, out, ["onnx"], part="encoder", overwrite=True)

    export()
    (out / "README.md").write_text("old")
    old = contents(out)
    for _ in killed_at_each_step(export, tmp_path):
        if not out.exists():
            found.append("none")
            assert contents(tmp_path / ".small.old") == old, "the next export renames it back"
        elif contents(out) == old:
            found.append("old")
        else:
            found.append("new")
            assert load(out, provider="cpu").verify().passed
    export()
    assert names(tmp_path) == ["small"]
    print(f"{len(found)} kills of a real export: {Counter(found)}")  # noqa: T201 - shown by pytest -s
    assert len(found) >= 20
    assert set(found) == {"old", "none", "new"}
    assert found.count("none") <= 2, "between two renames; the next export has one more, which renames it back"


@pytest.mark.parametrize("is_there", [False, True])
def test_a_full_disk_is_an_error_and_leaves_only_the_old_bundle(
    tmp_path: Path, files: dict[str, bytes], prepared: Export, no_fsync: None, is_there: bool
) -> None:
    out, outcomes, moved = tmp_path / "small", [], 0
    if is_there:
        prepared(out, "old")
    before = contents(tmp_path)
    for outcome in refused_at_each_step(lambda: prepared(out, "new"), tmp_path, errno.ENOSPC):
        outcomes.append(outcome)
        if outcome == DONE:  # the new one was in its place already
            assert (out / "README.md").read_text() == "new"
            shutil.rmtree(out)
            if is_there:
                prepared(out, "old")
            continue
        if ".small.old" in outcome:  # it could not be renamed back either
            assert contents(tmp_path / ".small.old") == {**files, "README.md": b"old"}
            (tmp_path / ".small.old").rename(out)
            moved += 1
        assert outcome.startswith(f"ExportError: {out} could not be written: ")
        assert "No space left on device" in outcome
        assert ". What was there before is not lost. Make room, see to the folder's permissions" in outcome
        assert contents(tmp_path) == before
    assert len(outcomes) >= 3 * len(files)
    assert moved == int(is_there)


def test_a_wheel_is_old_or_new_after_a_kill_at_any_step(tmp_path: Path, no_fsync: None) -> None:
    wheel = tmp_path / "small.whl"
    wheel.write_bytes(b"old")
    found = {wheel.read_bytes() for _ in killed_at_each_step(lambda: write_file(wheel, b"new"), tmp_path)}
    assert found == {b"old", b"new"}
    assert contents(tmp_path) == {wheel.name: b"new"}


def test_a_folder_that_may_not_be_written_to_is_named(prepared: Export) -> None:
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        out = Path(folder) / "small"
        error = error_without_permission(lambda: prepared(out, "new"))
        assert error.startswith(f"{out} could not be written: [Errno 13] Permission denied: ")
        assert names(Path(folder)) == []


def test_a_folder_that_vanishes_while_a_bundle_is_written_is_said(tmp_path: Path) -> None:
    def write() -> None:
        with bundle_folder(tmp_path / "small", overwrite=False) as folder:
            folder.rmdir()
            load(folder)

    with pytest.raises(ExportError, match=r"was removed while the bundle was written there; export again") as caught:
        write()
    assert isinstance(caught.value.__cause__, BundleError)
    assert names(tmp_path) == []


def test_the_second_of_two_concurrent_exports_is_refused_and_the_first_is_complete(
    tmp_path: Path, files: dict[str, bytes], prepared: Export
) -> None:
    out = tmp_path / "small"
    with bundle_folder(out, overwrite=False) as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        with pytest.raises(ExportError, match=r"another export to .*small is under way; wait for it, or choose anoth"):
            prepared(out, "second")
    assert contents(out) == files
    assert names(tmp_path) == ["small"]
    with pytest.raises(ExportError, match="already holds a bundle"):
        prepared(out, "third", overwrite=False)


def test_of_concurrent_exports_one_wins_completely(
    tmp_path: Path, files: dict[str, bytes], prepared: Export, no_fsync: None
) -> None:
    out = tmp_path / "small"
    prepared(out, "first")

    def export(card: str) -> None:
        for _ in range(10):
            with contextlib.suppress(ExportError):  # the other one is at it
                prepared(out, card)

    children = [fork(functools.partial(export, card)) for card in ("second", "third")]
    for _ in range(50):
        with contextlib.suppress(FileNotFoundError):  # for the moment between two renames
            Manifest.decode((out / "manifest.json").read_bytes())
    assert [wait(child) for child in children] == [0, 0]
    card = (out / "README.md").read_bytes()
    assert card in {b"second", b"third"}
    assert contents(out) == {**files, "README.md": card}
    assert names(tmp_path) == ["small"]
