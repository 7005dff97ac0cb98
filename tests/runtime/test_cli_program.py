"""What programs and shells need of `vae-run`: exit codes, JSON, progress, completion, a quick start."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

from edgevae import PARTS, Manifest, Model, Report
from edgevae.cli import main
from edgevae.doctor import diagnose
from edgevae.export import Source, export_bundle

MODELS = Path(__file__).parents[2] / "models"
DIGITS = MODELS / "digits-mlp"
REFERENCE = DIGITS / "reference.npz"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def record_of(result: Result) -> Any:
    """The one JSON object that a command printed, in which no number is NaN."""
    assert result.stderr == ""
    return json.loads(result.stdout, parse_constant=pytest.fail)


def test_info_gives_the_manifest() -> None:
    result = run("info", DIGITS, "--json")
    assert result.exit_code == 0
    record_of(result)
    assert Manifest.decode(result.stdout.encode()) == Manifest.decode((DIGITS / "manifest.json").read_bytes())


def test_verify_gives_every_check(bundle: Path, model: Model) -> None:
    found = record_of(run("verify", bundle, "--json"))
    assert (found["passed"], found["provider"], found["rows"]) == (True, "cpu", 256)
    assert [check["output"] for check in found["checks"]] == [check.output for check in model.verify().checks]


def test_a_failed_check_is_exit_code_1_and_nan_is_null(
    bundle: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = model.verify()
    bad = msgspec.structs.replace(good.checks[0], max_abs_diff=float("nan"), passed=False)
    monkeypatch.setattr(Model, "verify", lambda _self: Report("onnx", 256, (bad, *good.checks[1:])))
    result = run("verify", bundle, "--json")
    assert result.exit_code == 1
    found = record_of(result)
    assert found["passed"] is False
    assert found["checks"][0]["max_abs_diff"] is None


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
def test_what_was_written_is_one_json_object(
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


def test_score_gives_numbers_without_a_file() -> None:
    found = record_of(run("score", DIGITS, REFERENCE, "--json"))
    assert found["out"] is None
    assert found["limit_nats"] < found["mean_elbo_nats"] < 0
    assert 0 < found["unusual"] < 256


def test_bench_measures_every_method_at_every_size() -> None:
    options = ["--batch-size", "1,3", "--batch-size", "8", "--seconds", 0.01, "--threads", 1]
    found = record_of(run("bench", DIGITS, *options, "--json"))
    assert (found["provider"], found["threads"]) == ("cpu", 1)
    methods = ["encode", "decode", "reconstruct", "generate"]
    assert [(timing["batch_size"], timing["method"]) for timing in found["timings"]] == [
        (size, method) for size in (1, 3, 8) for method in methods
    ]
    for timing in found["timings"]:
        assert timing["calls"] >= 5
        assert 0 < timing["median_ms"] <= timing["p99_ms"]
        assert timing["rows_per_second"] > 0
    text = run("bench", MODELS / "mnist-conditional", "--batch-size", 2, "--seconds", 0.01)
    assert text.exit_code == 0, text.output
    assert "mnist-conditional in fp32 on cpu" in text.output
    assert len(text.output.splitlines()) == 2 + len(methods)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-size", "1,x"], "--batch-size must be integers, like 1,32,256, got 1,x"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--seconds", "0"], "Invalid value for '--seconds'"),
    ],
)
def test_a_bench_that_cannot_be_is_exit_code_2(options: list[str], message: str) -> None:
    result = run("bench", DIGITS, *options)
    assert result.exit_code == 2
    assert message in result.output


def test_a_part_of_a_model_does_what_it_can(source: Source, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 64), np.uint8))
    assert PARTS[1:] == ("encoder", "decoder")
    for part in PARTS[1:]:
        export_bundle(source, tmp_path / part, part=part)
        assert run("info", tmp_path / part).exit_code == 0
        assert run("verify", tmp_path / part).exit_code == 0
    options = ["--batch-size", 2, "--seconds", 0.01, "--json"]
    methods = [
        {timing["method"] for timing in record_of(run("bench", tmp_path / part, *options))["timings"]}
        for part in PARTS[1:]
    ]
    assert methods == [{"encode"}, {"decode", "generate"}]
    assert run("encode", tmp_path / "encoder", tmp_path / "x.npy", "--out", tmp_path / "z.npz").exit_code == 0
    assert run("decode", tmp_path / "decoder", tmp_path / "z.npz", "--out", tmp_path / "x.png").exit_code == 0
    for arguments in (["reconstruct", tmp_path / "x.npy"], ["generate"]):
        result = run(arguments[0], tmp_path / "encoder", *arguments[1:], "--out", tmp_path / "r.npy")
        assert result.exit_code == 2
        assert "holds only the model's encoder" in result.stderr


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


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_is_one_of_its_shell(shell: str) -> None:
    result = run("completion", shell)
    assert result.exit_code == 0
    assert f"_VAE_RUN_COMPLETE={shell}_complete" in result.stdout
    assert "vae-run" in result.stdout
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=result.stdout, text=True, check=True)
    assert run("completion", "tcsh").exit_code == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("vae-run rec", ["plain,reconstruct"]),
        ("vae-run generate models/digits-mlp --comp", ["plain,--component"]),
        ("vae-run generate models/digits-mlp --provider cu", ["plain,cuda"]),
        ("vae-run verify mod", ["dir,mod"]),
    ],
)
def test_the_shell_completes_commands_options_and_folders(words: str, expected: list[str], tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "_VAE_RUN_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    command = [sys.executable, "-m", "edgevae"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == expected


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


def test_the_doctor_says_which_providers_work_and_what_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    well = run("doctor")
    assert well.exit_code == 0, well.output
    assert "cpu: works" in well.output
    found = record_of(run("doctor", "--json"))
    assert {"name": "cpu", "works": True, "obstacle": ""} in found["providers"]
    assert found["problems"] == []

    ill = msgspec.structs.replace(diagnose(), problems=("pictures need Pillow; pip install pillow",))
    monkeypatch.setattr(sys.modules["edgevae.cli.doctor"], "diagnose", lambda: ill)
    result = run("doctor")
    assert result.exit_code == 1
    assert "to mend       pictures need Pillow; pip install pillow" in result.output
