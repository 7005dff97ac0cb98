"""What a program, a shell or a pipe gets from the commands: exit codes, JSON, text in any encoding, progress."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from edgevae import Model
from edgevae.cli import main
from edgevae.cli.sections import SectionedCommand, SectionOption

MODELS = Path(__file__).parents[2] / "models"
DIGITS = MODELS / "digits-mlp"
REFERENCE = DIGITS / "reference.npz"
CONDITIONAL = MODELS / "mnist-conditional"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def record_of(result: Result) -> Any:
    """The one JSON object that a command printed, in which no number is NaN."""
    assert result.stderr == ""
    return json.loads(result.stdout, parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info", "{tmp}"], "is not a bundle"),
        (["generate", "{bundle}", "--out", "{tmp}/g.gif"], "must end in .png, .npy or .npz, got"),
        (["generate", "{bundle}", "--out", "{tmp}/none/g.png"], "none does not exist; make it first"),
        (
            ["encode", "{bundle}", "{tmp}/bad.npy", "--out", "{tmp}/z.npz"],
            "bad.npy: cannot be read: it is no .npy or .npz file, and begins with b'nonsen'; write it with np.save",
        ),
        (["encode", "{bundle}", "{tmp}/short.npy", "--out", "{tmp}/z.npz"], "short.npy: cannot be read"),
        (["encode", "{bundle}", "{tmp}/empty.npz", "--out", "{tmp}/z.npz"], "must hold an array x, got y"),
        (["encode", "{bundle}", "{tmp}/wrong.npy", "--out", "{tmp}/z.npz"], "wrong.npy: x must have shape"),
        (["encode", "{bundle}", "{tmp}/turned.npy", "{tmp}/turned.npy", "--out", "{tmp}/z.npz"], "x must have shape"),
        (["encode", "{bundle}", "{tmp}/cut.npz", "--out", "{tmp}/z.npz"], "cannot be read"),
        (["encode", "{bundle}", "{tmp}/objects.npz", "--out", "{tmp}/z.npz"], "cannot be read"),
        (["generate", "{bundle}", "--provider", "cuda", "--out", "{tmp}/g.png"], "'cuda' does not work here"),
        (["generate", "{bundle}", "-n", "0", "--out", "{tmp}/g.png"], "Invalid value"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    bundle: Path, tmp_path: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    (tmp_path / "bad.npy").write_text("nonsense")
    (tmp_path / "short.npy").write_bytes(b"\x93NUMPY\x01\0v")
    np.savez(tmp_path / "empty.npz", y=np.zeros(3))
    np.save(tmp_path / "wrong.npy", np.zeros((3, 7)))
    np.save(tmp_path / "turned.npy", np.zeros((64, 4)))
    np.savez(tmp_path / "objects.npz", x=np.array([None, {}], dtype=object))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "empty.npz").read_bytes()[:-30])
    result = run(*(argument.format(bundle=bundle, tmp=tmp_path) for argument in arguments))
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["encode", REFERENCE, "--out", "z.npz"], {"rows": 256, "arrays": ["z_loc", "z_scale"], "z_dim": 50}),
        (["decode", REFERENCE, "--out", "x.png"], {"rows": 256, "written": 64}),
        (["reconstruct", REFERENCE, "--seed", 3, "--out", "r.png"], {"rows": 256, "written": 36, "seed": 3}),
        (["generate", "-n", 9, "--out", "g.npy"], {"written": 9, "seed": 0}),
        (["interpolate", REFERENCE, "--out", "l.npy"], {"pairs": 128, "written": 128, "steps": 8}),
        (["traverse", REFERENCE, "--dim", 3, "--out", "t.png"], {"rows": 256, "written": 16, "dims": [3]}),
        (["score", REFERENCE, "--out", "s.csv"], {"rows": 256, "rate": 0.01, "seed": 0}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_with_json_a_command_prints_one_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[object], expected: dict[str, object]
) -> None:
    monkeypatch.chdir(tmp_path)
    command, *options = arguments
    result = run(command, DIGITS, *options, "--json")
    assert result.exit_code == 0, result.output
    found = record_of(result)
    assert {name: found[name] for name in expected} == expected
    assert found["provider"] == "cpu"
    assert Path(found["out"]).stat().st_size > 0


def test_an_error_leaves_the_standard_output_empty(tmp_path: Path) -> None:
    result = run("score", DIGITS, tmp_path, "--json")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "is an empty folder" in result.stderr


def test_ctrl_c_is_exit_code_130_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Model, "encode", interrupted)
    assert run("encode", DIGITS, REFERENCE, "--out", tmp_path / "z.npz").exit_code == 130
    assert list(tmp_path.iterdir()) == []


def test_without_pillow_pictures_are_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.delitem(sys.modules, "edgevae.images", raising=False)
    monkeypatch.delattr("edgevae.images", raising=False)
    monkeypatch.setattr(Model, "generate", pytest.fail)
    for arguments in (
        ["generate", DIGITS, "--out", tmp_path / "g.png"],
        ["encode", DIGITS, "--out", tmp_path / "z.npz", tmp_path],
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "pictures need Pillow; pip install pillow" in result.stderr


def test_a_suffix_counts_in_capitals_too(tmp_path: Path) -> None:
    assert run("generate", DIGITS, "--out", tmp_path / "g.PNG", "-n", 2).exit_code == 0
    assert (tmp_path / "g.PNG").read_bytes().startswith(b"\x89PNG")


def test_help_loads_neither_onnx_runtime_nor_pillow(tmp_path: Path) -> None:
    program = """
import sys
from edgevae.cli import main
main(["encode", "--help"], standalone_mode=False)
print(sorted({"onnxruntime", "PIL"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("count", "shown"), [(5000, True), (100, False)])
def test_long_work_shows_a_bar_on_the_terminal_and_none_in_the_output(
    bundle: Path, tmp_path: Path, count: int, shown: bool
) -> None:
    pty = pytest.importorskip("pty", reason="needs a system with pseudo-terminals")
    np.save(tmp_path / "x.npy", np.zeros((count, 64), np.uint8))
    terminal, end = pty.openpty()
    arguments = ["reconstruct", str(bundle), "x.npy", "--out", "loc_img.npy", "--json"]
    command = [sys.executable, "-m", "edgevae", *arguments]
    done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=end, check=True)
    os.write(end, b".")
    text = os.read(terminal, 100_000).decode()
    os.close(terminal)
    os.close(end)
    assert json.loads(done.stdout)["written"] == count
    assert ("reconstructing" in text, f"{count}/{count}" in text) == (shown, shown)
    quiet = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    assert quiet.stderr == b""


def headings(command: click.Command) -> list[str]:
    """The lines of `--help` that begin at the margin, and the options below them."""
    lines = CliRunner().invoke(command, ["--help"]).output.splitlines()[1:]
    return [line.split()[0] for line in lines if line and not line.startswith("   ")]


def test_help_lists_options_under_their_sections_and_the_others_last() -> None:
    @click.command(cls=SectionedCommand)
    @click.option("--plain")
    @click.option("--data", cls=SectionOption, section="Data")
    @click.option("--model", cls=SectionOption, section="Model")
    @click.option("--size", cls=SectionOption, section="Data")
    @click.option("--hidden", cls=SectionOption, section="Secrets", hidden=True)
    @click.argument("path")
    def sectioned(**_options: object) -> None:
        pass

    @click.command(cls=SectionedCommand)
    @click.option("--plain")
    def plain(**_options: object) -> None:
        pass

    assert headings(sectioned) == ["Data:", "--data", "--size", "Model:", "--model", "Other:", "--plain", "--help"]
    assert headings(plain) == ["Options:", "--plain", "--help"]
