"""`vae-run`: its commands, the files that they write, exit codes and JSON."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image

from edgevae import MANIFEST_FILE, PARTS, InputError, Manifest, Model, Noise, Report, load
from edgevae.cli import main
from edgevae.cli.outputs import check_picture, rows_file, save_rows
from edgevae.cli.sections import SectionedCommand, SectionOption
from edgevae.doctor import diagnose
from edgevae.export import Source, export_bundle
from edgevae.files import replace_file
from edgevae.train import VAE, Dataset, ModelConfig, load_dataset

# The terminal: errors, exit codes, JSON, progress


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
            "bad.npy: cannot be read: it is named .npy but begins with",
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


# info, verify, bench, doctor and completion


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


# The commands that run a model


@pytest.fixture(scope="module")
def labelled_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conditional model with a mixture, untrained."""
    digits = load_dataset("digits", labels=True)
    vae = VAE(ModelConfig((1, 8, 8), 3, 8, latent="mixture", components=4, num_classes=10)).eval()
    out = tmp_path_factory.mktemp("models") / "labelled"
    export_bundle(Source("labelled", vae, digits.test, "test images of digits", None, digits.test_labels), out)
    return out


def test_encode_writes_the_posterior(bundle: Path, model: Model, digits: Dataset, tmp_path: Path) -> None:
    x = digits.test[:9].numpy()
    np.save(tmp_path / "x.npy", x)
    assert run("encode", bundle, tmp_path / "x.npy", "--out", tmp_path / "z.npz").exit_code == 0
    with np.load(tmp_path / "z.npz") as written:
        np.testing.assert_array_equal(written["z_loc"], model.encode(x).z_loc)
        np.testing.assert_array_equal(written["z_scale"], model.encode(x).z_scale)


def test_encode_writes_the_format_of_the_suffix(bundle: Path, model: Model, digits: Dataset, tmp_path: Path) -> None:
    x = digits.test[:30].numpy()
    np.save(tmp_path / "x.npy", x)
    posterior = model.encode(x)
    for suffix in ("npz", "npy", "csv", "json"):
        options = ["--batch-size", 7, "--out", tmp_path / f"z.{suffix}"]
        result = run("encode", bundle, tmp_path / "x.npy", *options)
        assert result.exit_code == 0, result.output
    with np.load(tmp_path / "z.npz", allow_pickle=False) as written:
        assert sorted(written.files) == ["latent_space_id", "z_loc", "z_scale"]
        assert str(written["latent_space_id"]) == posterior.latent_space_id
    np.testing.assert_allclose(np.load(tmp_path / "z.npy"), posterior.z_loc, atol=1e-6)
    lines = [line.split(",") for line in (tmp_path / "z.csv").read_text().splitlines()]
    assert lines[0] == [f"{name}[{dim}]" for name in ("z_loc", "z_scale") for dim in range(5)]
    np.testing.assert_allclose(np.array(lines[1:], float)[:, 5:], posterior.z_scale, atol=1e-6)
    content = json.loads((tmp_path / "z.json").read_text())
    np.testing.assert_allclose(content["z_loc"], posterior.z_loc, atol=1e-6)
    assert content["latent_space_id"] == posterior.latent_space_id


def test_encode_writes_the_other_arrays_of_mixtures_and_hierarchies(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((4, 784), np.float32))
    expected = {
        "mnist-mixture": ["component_probs", "latent_space_id", "z_loc", "z_scale"],
        "mnist-hierarchical": ["latent_space_id", "z_loc", "z_loc_2", "z_scale", "z_scale_2"],
    }
    for name, arrays in expected.items():
        out = tmp_path / f"{name}.npz"
        assert run("encode", MODELS / name, tmp_path / "x.npy", "--out", out).exit_code == 0
        with np.load(out) as written:
            assert sorted(written.files) == arrays
            posterior = load(MODELS / name, provider="cpu").encode(np.load(tmp_path / "x.npy"))
            np.testing.assert_array_equal(written[arrays[-1]], posterior.levels[-1].z_scale)


def test_image_files_are_observations(bundle: Path, model: Model, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8), dtype=np.uint8)
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file, image in zip(files, pixels, strict=True):
        Image.fromarray(image).save(file)
    assert run("encode", bundle, *files, "--out", tmp_path / "z.npz").exit_code == 0
    with np.load(tmp_path / "z.npz") as written:
        np.testing.assert_array_equal(written["z_loc"], model.encode(pixels).z_loc)


def test_labels_come_from_an_option_or_from_the_file(tmp_path: Path) -> None:
    model = load(CONDITIONAL, provider="cpu")
    x = np.random.default_rng(0).random((4, 784), np.float32)
    np.savez(tmp_path / "xy.npz", x=x, y=[1, 2, 3, 4])
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", [4, 3, 2, 1])
    assert run("encode", CONDITIONAL, tmp_path / "xy.npz", "--out", tmp_path / "z.npz").exit_code == 0
    with np.load(tmp_path / "z.npz") as written:
        np.testing.assert_array_equal(written["z_loc"], model.encode(x, y=[1, 2, 3, 4]).z_loc)
        assert written["y"].tolist() == [1, 2, 3, 4]
    out = tmp_path / "r.npz"
    assert run("reconstruct", CONDITIONAL, tmp_path / "x.npy", "--y", 7, "--out", out).exit_code == 0
    with np.load(out) as written:
        np.testing.assert_array_equal(written["loc_img"], model.reconstruct(x, y=7))
    assert (
        run("reconstruct", CONDITIONAL, tmp_path / "x.npy", "--labels", tmp_path / "y.npy", "--out", out).exit_code == 0
    )
    with np.load(out) as written:
        np.testing.assert_array_equal(written["loc_img"], model.reconstruct(x, y=[4, 3, 2, 1]))
    refused = run("encode", CONDITIONAL, tmp_path / "x.npy", "--out", tmp_path / "z.npz")
    assert refused.exit_code == 2
    assert "x.npy: y is needed: this model sees labels, integers from 0 to 9; give --y" in refused.output


def test_decode_gives_back_what_encode_wrote(bundle: Path, model: Model, digits: Dataset, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", digits.test[:70].numpy())
    assert run("encode", bundle, tmp_path / "x.npy", "--out", tmp_path / "z.npz").exit_code == 0
    assert run("encode", bundle, tmp_path / "x.npy", "--out", tmp_path / "z.npy").exit_code == 0
    for source in ("z.npz", "z.npy"):
        for out in ("x.npz", "loc_img.npy", "x.png"):
            result = run("decode", bundle, tmp_path / source, "--batch-size", 9, "--out", tmp_path / out)
            assert result.exit_code == 0, result.output
        expected = model.decode(np.load(tmp_path / "z.npy"))
        np.testing.assert_allclose(np.load(tmp_path / "loc_img.npy"), expected, atol=1e-6)
        with np.load(tmp_path / "x.npz") as written:
            np.testing.assert_allclose(written["loc_img"], expected, atol=1e-6)
        with Image.open(tmp_path / "x.png") as image:
            assert image.size == (8 * 63 + 7, 8 * 63 + 7)  # the first 64


def test_decode_refuses_latents_of_another_model(bundle: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "z.npz", z=np.zeros((2, 5), np.float32), latent_space_id=np.array("f" * 64))
    np.save(tmp_path / "wide.npy", np.zeros((2, 6), np.float32))
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 5), np.float32))
    (tmp_path / "z.png").touch()
    for name, message in (
        ("z.npz", "z is of latent space ffffffffffffffff, this model's is"),
        ("wide.npy", "wide.npy: z must have shape (batch, 5), got (2, 6)"),
        ("x.npz", "x.npz: must hold an array z or z_loc, got x"),
        ("z.png", "z.png: latents are read from .npy or .npz"),
    ):
        for out in ("out.npy", "out.png"):
            result = run("decode", bundle, tmp_path / name, "--out", tmp_path / out)
            assert result.exit_code == 2
            assert message in result.output
            assert not (tmp_path / out).exists()


def test_latents_of_a_conditional_model_keep_their_labels(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((4, 784), np.float32)
    np.savez(tmp_path / "xy.npz", x=x, y=[1, 2, 3, 4])
    encoded = run("encode", CONDITIONAL, tmp_path / "xy.npz", "--out", tmp_path / "z.npz")
    assert "z_loc, z_scale, y, 4 rows of 50" in encoded.stdout
    assert run("decode", CONDITIONAL, tmp_path / "z.npz", "--out", tmp_path / "a.npy").exit_code == 0
    assert run("decode", CONDITIONAL, tmp_path / "z.npz", "--y", 7, "--out", tmp_path / "b.npy").exit_code == 0
    model = load(CONDITIONAL, provider="cpu")
    z = model.encode(x, y=[1, 2, 3, 4]).z_loc
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), model.decode(z, y=[1, 2, 3, 4]))
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), model.decode(z, y=7))


def test_reconstruct_writes_numbers_and_pictures(bundle: Path, model: Model, digits: Dataset, tmp_path: Path) -> None:
    x = digits.test[:5].numpy()
    np.savez(tmp_path / "x.npz", x=x)
    for out in ("r.npz", "r.png"):
        result = run("reconstruct", bundle, tmp_path / "x.npz", "--seed", 3, "--out", tmp_path / out)
        assert result.exit_code == 0, result.output
    with np.load(tmp_path / "r.npz") as written:
        np.testing.assert_array_equal(written["loc_img"], model.reconstruct(x, seed=3))
    with Image.open(tmp_path / "r.png") as image:
        assert image.size == (5 * 63 + 7, 2 * 63 + 7)  # a row of five digits above a row of reconstructions


@pytest.mark.parametrize(("count", "batch_size"), [(5, 1024), (100, 30), (1500, 400)])
def test_the_noise_of_a_seed_does_not_depend_on_the_batch_size(
    bundle: Path, model: Model, tmp_path: Path, count: int, batch_size: int
) -> None:
    x = np.random.default_rng(0).random((count, 64), np.float32)
    np.save(tmp_path / "x.npy", x)
    options = ["--seed", 3, "--batch-size", batch_size, "--out"]
    for out in ("r.npy", "r.npz", "r.png"):
        result = run("reconstruct", bundle, tmp_path / "x.npy", *options, tmp_path / out)
        assert result.exit_code == 0, result.output
    if count <= 1024:
        expected = model.reconstruct(x, seed=3)
    else:
        expected = np.concatenate(list(model.reconstruct_batches(x, seed=3)))
    np.testing.assert_allclose(np.load(tmp_path / "r.npy"), expected, atol=1e-6)
    with np.load(tmp_path / "r.npz") as written:
        np.testing.assert_allclose(written["loc_img"], expected, atol=1e-6)
    with Image.open(tmp_path / "r.png") as image:
        shown = np.asarray(image)[7 + 63 + 3 : 7 + 63 + 56 : 7, 7 + 3 : 7 + 56 : 7] / 255
    np.testing.assert_allclose(shown.ravel(), expected[0], atol=0.003)


def test_score_finds_anomalous_rows_and_writes_the_elbo_of_each(digits: Dataset, tmp_path: Path) -> None:
    bundle = MODELS / "digits-mlp"
    noise = np.random.default_rng(0).random((3, 1, 8, 8), np.float32)
    np.save(tmp_path / "x.npy", np.concatenate([digits.test[:5].numpy(), noise]))
    for out in ("s.csv", "s.npz", "s.json"):
        result = run("score", bundle, tmp_path / "x.npy", "--out", tmp_path / out)
        assert result.exit_code == 0, result.output
        text = re.sub(r"-\d+\.\d\d", "-1.2", result.output)
        assert text == (
            "3 of 8 rows are anomalous: ELBO below -1.2 nats, the threshold that 1 % of the test rows fall below\n"
        )
    rows = [line.split(",") for line in (tmp_path / "s.csv").read_text().splitlines()]
    assert rows[0] == ["elbo", "reconstruction", "kl", "anomalous"]
    assert [row[3] for row in rows[1:]] == ["False"] * 5 + ["True"] * 3
    with np.load(tmp_path / "s.npz") as written:
        np.testing.assert_allclose(written["elbo"], [float(row[0]) for row in rows[1:]])
        np.testing.assert_array_equal(written["elbo"], load(bundle).score(np.load(tmp_path / "x.npy")).elbo)
    assert json.loads((tmp_path / "s.json").read_text())["anomalous"] == [False] * 5 + [True] * 3
    assert run("score", bundle, tmp_path / "x.npy", "--out", tmp_path / "s.txt").exit_code == 2
    assert run("score", bundle, tmp_path / "x.npy", "--rate", 2).exit_code == 2


def test_score_finds_nothing_anomalous_without_quantiles_of_the_test_elbo(bundle: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((3, 64), np.uint8))
    result = run("score", bundle, tmp_path / "x.npy", "--out", tmp_path / "s.csv")
    assert result.exit_code == 0, result.output
    assert "no quantiles of the test ELBO, so there is no threshold for anomalous rows" in result.output
    assert (tmp_path / "s.csv").read_text().startswith("elbo,reconstruction,kl\n")
    refused = run("score", bundle, tmp_path / "x.npy", "--rate", 0.01)
    assert refused.exit_code == 2
    assert "holds no distribution of test images" in refused.output


def test_many_rows_are_scored_with_one_stream_of_noise(bundle: Path, model: Model, tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((1500, 64), np.float32)
    np.save(tmp_path / "x.npy", x)
    assert run("score", bundle, tmp_path / "x.npy", "--seed", 5, "--out", tmp_path / "s.npz").exit_code == 0
    stream = Noise(5)
    expected = np.concatenate([model.score(part, stream).elbo for part in (x[:1024], x[1024:])])
    with np.load(tmp_path / "s.npz") as written:
        np.testing.assert_array_equal(written["elbo"], expected)


@pytest.fixture
def image_folder(digits: Dataset, tmp_path: Path) -> Path:
    """Four digits and, as `odd, one.png`, noise."""
    folder = tmp_path / "images"
    folder.mkdir()
    images = {f"{i}.png": image.numpy() * 255 for i, image in enumerate(digits.test[:4])}
    images["odd, one.png"] = np.random.default_rng(0).random((1, 8, 8)) * 255
    for name, image in images.items():
        Image.fromarray(image.reshape(8, 8).astype(np.uint8)).save(folder / name)
    return folder


@pytest.mark.parametrize("command", ["score", "encode"])
def test_each_row_names_its_image(command: str, image_folder: Path, tmp_path: Path) -> None:
    files = [str(image_folder / name) for name in ("0.png", "1.png", "2.png", "3.png", "odd, one.png")]
    batches = ["--batch-size", 2] if command == "encode" else []
    for out in ("rows.csv", "rows.json", "rows.npz"):
        result = run(command, DIGITS, image_folder, *batches, "--out", tmp_path / out)
        assert result.exit_code == 0, result.output
    with (tmp_path / "rows.csv").open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames is not None
    assert reader.fieldnames[0] == "file"
    assert [row["file"] for row in rows] == files
    assert json.loads((tmp_path / "rows.json").read_text())["file"] == files
    with np.load(tmp_path / "rows.npz", allow_pickle=False) as arrays:
        assert arrays["file"].tolist() == files
    if command == "score":
        assert [row["file"] for row in rows if row["anomalous"] == "True"] == files[-1:]


def test_rows_of_several_files_name_their_file_and_those_of_one_array_do_not(
    digits: Dataset, image_folder: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", digits.test[:3].numpy())
    inputs = [tmp_path / "x.npy", image_folder / "0.png", tmp_path / "x.npy"]
    assert run("encode", DIGITS, *inputs, "--batch-size", 2, "--out", tmp_path / "z.json").exit_code == 0
    names = [*[inputs[0]] * 3, inputs[1], *[inputs[2]] * 3]
    assert json.loads((tmp_path / "z.json").read_text())["file"] == [str(name) for name in names]
    assert run("encode", DIGITS, *inputs, "--out", tmp_path / "z.npy").exit_code == 0
    assert np.load(tmp_path / "z.npy").shape == (7, 50)
    for command in ("encode", "score"):
        assert run(command, DIGITS, tmp_path / "x.npy", "--out", tmp_path / "one.json").exit_code == 0
        assert "file" not in json.loads((tmp_path / "one.json").read_text())
        assert "the path of each row's file" in " ".join(run(command, "--help").output.split())


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have file names in Unicode only")
def test_a_file_name_that_is_not_utf8_is_written_with_escapes(image_folder: Path, tmp_path: Path) -> None:
    (image_folder / "0.png").rename(image_folder / os.fsdecode(b"\xff.png"))
    for out in ("rows.csv", "rows.json", "rows.npz"):
        result = run("score", DIGITS, image_folder, "--out", tmp_path / out, "--json")
        assert result.exit_code == 0, result.output
    assert rf"{image_folder}/\xff.png" in json.loads((tmp_path / "rows.json").read_text())["file"]
    assert rf"{image_folder}/\xff.png" in (tmp_path / "rows.csv").read_text()


def test_score_prints_its_summary_without_a_file() -> None:
    found = record_of(run("score", DIGITS, REFERENCE, "--json"))
    assert found["out"] is None
    assert found["threshold_nats"] < found["mean_elbo_nats"] < 0
    assert 0 < found["anomalous"] < 256


def test_generate_writes_numbers_and_pictures(bundle: Path, model: Model, tmp_path: Path) -> None:
    for out in ("g.npz", "g.npy"):
        assert run("generate", bundle, "-n", 6, "--seed", 2, "--out", tmp_path / out).exit_code == 0
    with np.load(tmp_path / "g.npz") as written:
        np.testing.assert_array_equal(written["loc_img"], model.generate(6, seed=2))
    np.testing.assert_array_equal(np.load(tmp_path / "g.npy"), model.generate(6, seed=2))
    assert run("generate", bundle, "-n", 6, "--out", tmp_path / "g.png").exit_code == 0
    with Image.open(tmp_path / "g.png") as image:
        assert image.size == (6 * 63 + 7, 63 + 7)


def test_generate_makes_a_chosen_class_or_an_equal_share_of_each(labelled_bundle: Path, tmp_path: Path) -> None:
    model = load(labelled_bundle, provider="cpu")
    options = ["-n", 40, "--y", "each", "--component", 2]
    assert run("generate", labelled_bundle, *options, "--out", tmp_path / "g.npz").exit_code == 0
    with np.load(tmp_path / "g.npz") as written:
        expected = model.generate(40, seed=0, y=np.repeat(np.arange(10), 4), component=2)
        np.testing.assert_array_equal(written["loc_img"], expected)
    assert run("generate", labelled_bundle, *options, "--out", tmp_path / "g.png").exit_code == 0
    with Image.open(tmp_path / "g.png") as image:
        assert image.size == (4 * 63 + 7, 10 * 63 + 7)  # a class a row


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "this model sees labels, integers from 0 to 9; give --y, or --y each for all of them"),
        (["--y", "ten"], "--y must be an integer, or each, got 'ten'"),
        (["--y", "10"], "y must be from 0 to 9, got 10"),
        (["--y", "each", "-n", "7"], "--y each needs -n to be a multiple of 10, got 7"),
        (["--y", "1", "--component", "4"], "component must be from 0 to 3, got 4"),
        (["--y", "each", "--component", "each"], "--y each and --component each were both given"),
    ],
)
def test_choices_that_do_not_fit_the_model_are_refused(
    labelled_bundle: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    result = run("generate", labelled_bundle, *options, "--out", tmp_path / "g.png")
    assert result.exit_code == 2
    assert message in result.output


def test_interpolate_decodes_a_line_a_pair(bundle: Path, model: Model, digits: Dataset, tmp_path: Path) -> None:
    x = digits.test[:6].numpy()
    np.save(tmp_path / "x.npy", x)
    for out in ("l.npy", "l.npz", "l.png"):
        result = run("interpolate", bundle, tmp_path / "x.npy", "--steps", 4, "--out", tmp_path / out)
        assert result.exit_code == 0, result.output
    expected = model.interpolate(x[::2], x[1::2], 4)
    np.testing.assert_array_equal(np.load(tmp_path / "l.npy"), expected)
    with np.load(tmp_path / "l.npz") as written:
        np.testing.assert_array_equal(written["loc_img"], expected)
    tiles = tiles_of(tmp_path / "l.png")
    assert tiles.shape == (3, 6, 8, 8)  # a pair a row: an end, four steps, the other end
    np.testing.assert_allclose(tiles[:, 0].reshape(3, 64), x[::2].reshape(3, 64), atol=0.003)
    np.testing.assert_allclose(tiles[:, -1].reshape(3, 64), x[1::2].reshape(3, 64), atol=0.003)
    np.testing.assert_allclose(tiles[:, 1:-1].reshape(3, 4, 64), expected, atol=0.003)


def test_interpolate_takes_two_pictures(bundle: Path, model: Model, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8), dtype=np.uint8)
    for name, image in zip("ab", pixels, strict=True):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    out = tmp_path / "l.npy"
    assert run("interpolate", bundle, tmp_path / "a.png", tmp_path / "b.png", "--out", out).exit_code == 0
    np.testing.assert_allclose(np.load(out), model.interpolate(pixels[:1], pixels[1:], 8), atol=1e-6)
    alone = run("interpolate", bundle, tmp_path / "a.png", "--out", out)
    assert alone.exit_code == 2
    assert "interpolate takes pairs, so an even number of rows, got 1" in alone.output


def test_both_rows_of_a_pair_need_the_same_label(tmp_path: Path) -> None:
    np.savez(tmp_path / "xy.npz", x=np.zeros((4, 784), np.uint8), y=[1, 1, 2, 3])
    refused = run("interpolate", CONDITIONAL, tmp_path / "xy.npz", "--out", tmp_path / "l.npy")
    assert refused.exit_code == 2
    assert "both rows of a pair must have the same label, got 2 and 3 for pair 1; give --y" in refused.output
    assert run("interpolate", CONDITIONAL, tmp_path / "xy.npz", "--y", 5, "--out", tmp_path / "l.npy").exit_code == 0
    x = np.zeros((2, 784), np.uint8)
    expected = load(CONDITIONAL, provider="cpu").interpolate(x, x, 8, y=5)
    np.testing.assert_array_equal(np.load(tmp_path / "l.npy"), expected)


def test_traverse_sets_one_dimension_after_the_other(
    bundle: Path, model: Model, digits: Dataset, tmp_path: Path
) -> None:
    x = digits.test[:70].numpy()
    np.save(tmp_path / "x.npy", x)
    for out in ("t.npy", "t.npz", "t.png"):
        options = ["--dim", 3, "--dim", 1, "--span", "-2,2", "--steps", 5, "--out", tmp_path / out]
        result = run("traverse", bundle, tmp_path / "x.npy", *options)
        assert result.exit_code == 0, result.output
    span = [-2, -1, 0, 1, 2]
    expected = np.stack([model.traverse(x, dim, span) for dim in (3, 1)], axis=1)
    np.testing.assert_allclose(np.load(tmp_path / "t.npy"), expected, atol=1e-6)
    with np.load(tmp_path / "t.npz") as written:
        np.testing.assert_allclose(written["loc_img"], expected, atol=1e-6)
        assert written["dims"].tolist() == [3, 1]
        assert written["span"].tolist() == span
    tiles = tiles_of(tmp_path / "t.png")
    assert tiles.shape == (16, 6, 8, 8)  # eight observations with two dimensions each
    np.testing.assert_allclose(tiles[1::2, 0].reshape(8, 64), x[:8].reshape(8, 64), atol=0.003)
    np.testing.assert_allclose(tiles[:, 1:].reshape(8, 2, 5, 64), expected[:8], atol=0.003)


def test_traverse_varies_the_active_units_by_default(
    bundle: Path, model: Model, digits: Dataset, tmp_path: Path
) -> None:
    x = digits.test[:50].numpy()
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "one.npy", x[:1])
    np.save(tmp_path / "same.npy", x[[0, 0]])
    out = tmp_path / "t.npy"
    found = json.loads(run("traverse", bundle, tmp_path / "x.npy", "--out", out, "--json").stdout)
    assert found["dims"] == np.flatnonzero(model.active_units(x)).tolist()
    found = json.loads(run("traverse", CONDITIONAL, reference_row(tmp_path), "--y", 3, "--out", out, "--json").stdout)
    with np.load(tmp_path / "row.npz") as row:
        z_scale = load(CONDITIONAL, provider="cpu").encode(row["x"], y=3).z_scale[0]
    assert len(found["dims"]) == 8
    assert z_scale[found["dims"]].max() <= np.sort(z_scale)[7]
    refused = run("traverse", bundle, tmp_path / "same.npy", "--out", out)
    assert refused.exit_code == 2
    assert "no dimension of the posterior mean varies over these rows; choose one with --dim" in refused.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dim", "5"], "dim must be from 0 to 4, got 5"),
        (["--dim", "0", "--span", "3"], "--span must be two numbers with a comma between, like -3,3, got '3'"),
        (["--dim", "0", "--span", "0,inf"], "--span must be finite"),
        (["--dim", "0", "--steps", "1"], "Invalid value for '--steps'"),
    ],
)
def test_wrong_options_of_traverse_are_refused(bundle: Path, tmp_path: Path, options: list[str], message: str) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 64), np.uint8))
    result = run("traverse", bundle, tmp_path / "x.npy", *options, "--out", tmp_path / "t.npy")
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "t.npy").exists()


def tiles_of(path: Path) -> NDArray[np.float64]:
    """The images of a grid of digits, shape `(rows, columns, 8, 8)`, in [0, 1]."""
    with Image.open(path) as image:
        pixels = np.asarray(image) / 255
    rows, columns = ((size - 7) // 63 for size in pixels.shape)
    tiles = pixels[7:, 7:].reshape(rows, 63, columns, 63).transpose(0, 2, 1, 3)
    return tiles[:, :, 3:56:7, 3:56:7]


def reference_row(folder: Path) -> Path:
    with np.load(CONDITIONAL / "reference.npz") as reference:
        np.savez(folder / "row.npz", x=reference["x"][:1])
    return folder / "row.npz"


# Output files


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
