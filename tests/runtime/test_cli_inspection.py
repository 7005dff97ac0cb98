"""`vae-run info`, `verify`, `bench`, `doctor` and `completion`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result

from edgevae import MANIFEST_FILE, PARTS, Manifest, Model, Report
from edgevae.cli import main
from edgevae.doctor import diagnose
from edgevae.export import Source, export_bundle

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


def test_info_says_what_the_bundle_is(bundle: Path) -> None:
    result = run("info", bundle)
    assert result.exit_code == 0
    for text in ("small", "64-16-5", "bernoulli", "x → z_loc, z_scale", "encoder.ts", "unknown"):
        assert text in result.output


def test_info_names_labels_and_latent() -> None:
    assert re.search("^labels +y, integers from 0 to 9$", run("info", CONDITIONAL).output, re.MULTILINE)
    mixture = run("info", MODELS / "mnist-mixture").output
    assert "mixture of 10, 50 dimensions" in mixture
    assert "component, eps → z_prior" in mixture


def test_info_gives_the_manifest() -> None:
    result = run("info", DIGITS, "--json")
    assert result.exit_code == 0
    record_of(result)
    assert Manifest.decode(result.stdout.encode()) == Manifest.decode((DIGITS / "manifest.json").read_bytes())


def test_verify_prints_the_table_and_passes(bundle: Path) -> None:
    result = run("verify", bundle)
    assert result.exit_code == 0
    assert "onnx: passed; 256 rows" in result.output


def test_verify_exits_1_where_a_number_is_out_of_tolerance(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    manifest = (copy / MANIFEST_FILE).read_text()
    (copy / MANIFEST_FILE).write_text(manifest.replace('"atol": 0.00001', '"atol": 0').replace("0.00001", "0"))
    result = run("verify", copy)
    assert result.exit_code == 1
    assert "onnx: FAILED" in result.output


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


def test_a_bundle_with_a_part_of_a_model_runs_that_part(source: Source, tmp_path: Path) -> None:
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
def test_wrong_options_of_bench_are_refused(options: list[str], message: str) -> None:
    result = run("bench", DIGITS, *options)
    assert result.exit_code == 2
    assert message in result.output


def test_the_doctor_says_which_providers_work_and_what_to_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    well = run("doctor")
    assert well.exit_code == 0, well.output
    assert "cpu: works" in well.output
    found = record_of(run("doctor", "--json"))
    assert {"name": "cpu", "works": True, "obstacle": ""} in found["providers"]
    assert found["problems"] == []

    ill = msgspec.structs.replace(diagnose(), problems=("pictures need Pillow; pip install pillow",))
    monkeypatch.setattr(sys.modules["edgevae.cli.inspection"], "diagnose", lambda: ill)
    result = run("doctor")
    assert result.exit_code == 1
    assert "to fix        pictures need Pillow; pip install pillow" in result.output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_that_the_shell_accepts(shell: str) -> None:
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
