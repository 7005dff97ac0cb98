"""Each example, run as a reader would; test_service.py tests the HTTP service."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

import edgevae
import edgevae.train
from edgevae.export.cli import main as export_main
from edgevae.train.cli import main as train_main

from .serving import REPOSITORY, load, png, reference

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))
TRAINS = {"own_networks"}
BUNDLE = "models/mnist-mlp"
USUAL, UNREADABLE, UNUSUAL = 0, 2, 3


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", f"examples/{name}.py", *arguments]


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(name, *arguments), cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_uses_only_what_the_runtime_offers(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert path.stem in TRAINS or not re.search(r"\btorch\b|\bpyro\b", text)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "edgevae":
            assert node.attr in edgevae.__all__, node.attr


@pytest.mark.parametrize("name", sorted(path.name for path in (REPOSITORY / "models").iterdir()))
def test_embed_runs_each_bundle(name: str) -> None:
    done = run("embed", f"models/{name}")
    assert done.returncode == 0, done.stderr
    title, *rows = done.stdout.splitlines()
    assert title.startswith(f"{name} on ")
    assert len(rows) == 4
    score = [float(elbo) for elbo in re.findall(r"ELBO (-?\d+\.\d)", done.stdout)]
    model = load(name)
    y = 0 if model.num_classes else None
    np.testing.assert_allclose(score, model.score(model.generate(4, seed=0, y=y), y=y).elbo, atol=0.1)


def test_embed_says_how_it_is_called() -> None:
    done = run("embed")
    assert done.returncode == 1
    assert "usage: python examples/embed.py BUNDLE" in done.stderr


def test_the_benchmark_recommends_the_fastest_of_the_settings_that_it_measured() -> None:
    arguments = ["--batch-size", "1", "--batch-size", "8", "--threads", "1", "--threads", "2", "--seconds", "0.2"]
    done = run("benchmark_my_device", "models/digits-mlp", *arguments, "--provider", "cpu")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if " cpu " in line]
    assert [(row[0], row[2]) for row in rows] == [("1", "1"), ("1", "2"), ("8", "1"), ("8", "2")]
    for size in ("1", "8"):
        medians = {int(row[2]): float(row[3]) for row in rows if row[0] == size}
        (threads,) = re.findall(
            rf'batches of {size}: edgevae.load\("models/digits-mlp", .*threads=(\d+)\)', done.stdout
        )
        assert medians[int(threads)] <= min(medians.values()) * 1.12  # within this, fewer threads win
    assert all(float(row[3]) <= float(row[4]) and int(row[6]) >= 5 for row in rows)


def test_the_benchmark_says_which_provider_it_leaves_out_and_why() -> None:
    done = run(
        "benchmark_my_device", "models/digits-mlp", "--provider", "cpu", "--provider", "coreml", "--seconds", "0"
    )
    assert done.returncode == 0, done.stderr
    assert "left out: provider 'coreml' does not work here" in done.stderr
    assert 'provider="cpu"' in done.stdout
    nothing = run("benchmark_my_device", "models/digits-mlp", "--provider", "coreml")
    assert nothing.returncode == 2
    assert "none of the providers works here: coreml" in nothing.stderr


@pytest.fixture(scope="module")
def x() -> NDArray[np.float32]:
    return reference("mnist-mlp")["x"]


@pytest.fixture(scope="module")
def unusual(x: NDArray[np.float32]) -> list[int]:
    """The rows that a direct call finds unusual."""
    model = load("mnist-mlp")
    found = [index for index, row in enumerate(x) if model.is_anomaly(row[None])[0]]
    assert 0 < len(found) < 20
    return found


@pytest.mark.parametrize("batch_size", ["1", "7", "64"])
def test_the_stream_finds_what_direct_calls_find_however_it_is_cut(
    batch_size: str, x: NDArray[np.float32], unusual: list[int], tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", x)
    done = run("anomaly_stream", BUNDLE, str(tmp_path / "x.npy"), "--batch-size", batch_size)
    assert done.returncode == UNUSUAL, done.stderr
    *lines, summary = done.stdout.splitlines()
    assert [int(index) for index in re.findall(r"x\.npy\[(\d+)\]: ELBO", done.stdout)] == unusual
    assert summary.startswith(f"256 images scored, {len(unusual)} unusual")
    model = load("mnist-mlp")
    for line, index in zip(lines, unusual, strict=True):
        score = model.score(x[index : index + 1])
        expected = (score.elbo[0], score.reconstruction[0], score.kl[0], model.threshold() - score.elbo[0])
        np.testing.assert_allclose([float(value) for value in re.findall(r"-?\d+\.\d\d", line)], expected, atol=0.01)


def test_the_stream_is_quiet_about_usual_images(x: NDArray[np.float32], tmp_path: Path) -> None:
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(png(x[index]))
    done = run("anomaly_stream", BUNDLE, str(tmp_path), "--rate", "0.001")
    assert done.returncode == USUAL, done.stderr
    assert done.stdout.startswith("3 images scored, 0 unusual")
    assert len(done.stdout.splitlines()) == 1


def test_the_stream_names_what_it_cannot_read_and_goes_on(x: NDArray[np.float32], tmp_path: Path) -> None:
    np.save(tmp_path / "shape.npy", x[0])
    np.save(tmp_path / "nan.npy", np.stack([x[0], np.full(784, np.nan, np.float32), x[1]]))
    np.save(tmp_path / "scalar.npy", np.float32(1))
    (tmp_path / "no.npy").write_bytes(b"hello")
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "no.png").write_bytes(b"hello")
    Image.new("L", (3, 3)).save(tmp_path / "small.png")
    done = run("anomaly_stream", BUNDLE, str(tmp_path), str(tmp_path / "gone.png"), "--rate", "0.001")
    assert done.returncode == UNREADABLE
    told = done.stderr.splitlines()
    assert [line.split(":")[0].rpartition("/")[2].split(" ")[0] for line in told] == [
        *("empty.npy", "nan.npy[1]", "no.npy", "no.png", "scalar.npy", "shape.npy", "small.png", "gone.png")
    ]
    assert "x must not hold NaN" in told[1]
    assert "add a batch axis with x[None]" in told[5]
    assert "2 images scored" in done.stdout
    assert "8 not readable" in done.stdout


def test_the_stream_shows_an_unusual_image_before_the_next_comes(x: NDArray[np.float32], tmp_path: Path) -> None:
    (tmp_path / "noise.png").write_bytes(png(np.random.RandomState(0).uniform(size=784).astype(np.float32)))
    with subprocess.Popen(
        command("anomaly_stream", BUNDLE, "-"), cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(2):
            process.stdin.write(f"{tmp_path}/noise.png\n")
            process.stdin.flush()
            assert "noise.png: ELBO" in process.stdout.readline()  # the stream has not ended
        process.stdin.close()
        assert process.stdout.read().startswith("2 images scored, 2 unusual (100.0%")
    assert process.returncode == UNUSUAL


def test_the_stream_reads_ahead_by_a_bounded_number_of_images() -> None:
    from anomaly_stream import READ_AHEAD, batches

    read = 0

    def endless() -> Iterator[tuple[str, NDArray[np.float32]]]:
        nonlocal read
        while True:
            read += 1
            yield str(read), np.zeros(1, np.float32)

    taken = 0
    for batch, _ in zip(batches(endless(), 64), range(100), strict=False):
        taken += len(batch)
        assert read <= taken + READ_AHEAD + 64
        assert 1 <= len(batch) <= 64


def test_an_error_of_the_streams_reader_is_raised() -> None:
    from anomaly_stream import batches

    def broken() -> Iterator[tuple[str, NDArray[np.float32]]]:
        yield "first", np.zeros(1, np.float32)
        raise RuntimeError("a fault of the program")

    with pytest.raises(RuntimeError, match="a fault of the program"):
        list(batches(broken(), 64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["models/gone", "x.npy"], "models/gone"),
        ([BUNDLE, "x.npy", "--rate", "2"], "rate must be"),
        ([BUNDLE, "x.npy", "--y", "3"], "this model sees no labels"),
        (["models/mnist-conditional", "x.npy"], "y is needed"),
    ],
)
def test_the_stream_refuses_what_cannot_work_before_it_reads(arguments: list[str], message: str) -> None:
    done = run("anomaly_stream", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_stream_takes_labels_and_the_levels_of_a_hierarchy(tmp_path: Path) -> None:
    for name, options in (("mnist-conditional", ["--y", "3"]), ("mnist-hierarchical", [])):
        x = reference(name)["x"][:20]
        np.save(tmp_path / "x.npy", x)
        model = load(name)
        y = 3 if model.num_classes else None
        expected = [index for index, row in enumerate(x) if model.is_anomaly(row[None], y=y, rate=0.2)[0]]
        done = run("anomaly_stream", f"models/{name}", str(tmp_path / "x.npy"), "--rate", "0.2", *options)
        assert [int(index) for index in re.findall(r"x\.npy\[(\d+)\]: ELBO", done.stdout)] == expected, done.stderr


# own_networks.py


ARCHITECTURE = "own_networks:TanhEncoder,TanhDecoder"
WITHOUT_THE_NETWORKS = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np, edgevae
model = edgevae.load(sys.argv[2], provider="cpu", threads=1)
assert model.verify().passed
np.save(sys.argv[4], model.reconstruct(np.load(sys.argv[3]), seed=0))
assert not {"own_networks", "torch", "edgevae.train"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the example leaves, run as a reader would."""
    folder, printed = tmp_path_factory.mktemp("own") / "out", io.StringIO()
    program = REPOSITORY / "examples" / "own_networks.py"
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", [str(program), "--epochs", "2", "--out", str(folder)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(program), run_name="__main__")
    assert not ended.value.code
    first, *report, last = printed.getvalue().splitlines()
    assert first.startswith(f"trained {ARCHITECTURE}: test ELBO -")
    assert report[0].startswith("onnx: passed")
    assert last.startswith("64 images: ELBO -")
    return folder


def test_the_networks_are_those_of_the_paper(out: Path) -> None:
    run = edgevae.train.load_run(out / "run")
    shapes = {name: tuple(weight.shape) for name, weight in run.vae.named_parameters() if weight.dim() == 2}
    assert shapes == {
        "encoder.layers.0.weight": (200, 64),
        "encoder.layers.2.weight": (200, 200),
        "encoder.fc21.weight": (50, 200),
        "encoder.fc22.weight": (50, 200),
        "decoder.layers.0.weight": (200, 50),
        "decoder.layers.2.weight": (200, 200),
        "decoder.layers.4.weight": (64, 200),
    }
    kinds = [type(module).__name__ for module in run.vae.modules()]
    assert (kinds.count("Tanh"), kinds.count("Linear")) == (4, 7)
    assert run.config.training.binarize == "stochastic"
    assert [line.epoch for line in run.metrics] == [1, 2]
    assert run.metrics[1].test_elbo_nats > run.metrics[0].test_elbo_nats


def test_the_weights_begin_as_glorot_and_bengio_say() -> None:
    config = edgevae.train.ModelConfig((1, 28, 28), architecture=ARCHITECTURE, hidden_dim=200)
    for name, weight in edgevae.train.VAE(config).named_parameters():
        if weight.dim() == 1:
            assert not weight.any(), name
        else:
            assert float(weight.detach().abs().max()) == pytest.approx((6 / sum(weight.shape)) ** 0.5, rel=0.01), name


def test_the_bundle_runs_where_its_networks_are_not_known(out: Path, tmp_path: Path) -> None:
    run = edgevae.train.load_run(out / "run")
    np.save(tmp_path / "x.npy", run.samples[:5].numpy())
    paths = [REPOSITORY, out / "bundle", tmp_path / "x.npy", tmp_path / "loc_img.npy"]
    subprocess.run([sys.executable, "-c", WITHOUT_THE_NETWORKS, *map(str, paths)], cwd=tmp_path, check=True)
    with edgevae.train.evaluating(run.vae), torch.random.fork_rng([]):
        torch.manual_seed(0)
        loc_img = run.vae.reconstruct_img(run.samples[:5])
    np.testing.assert_allclose(np.load(tmp_path / "loc_img.npy"), loc_img.numpy(), atol=1e-5)
    manifest = json.loads((out / "bundle" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["model"]["architecture"] == ARCHITECTURE
    assert f"| architecture | {ARCHITECTURE}, 64-200-50 |" in (out / "bundle" / "README.md").read_text(encoding="utf-8")


def test_the_commands_do_the_same(tmp_path: Path) -> None:
    run, bundle = str(tmp_path / "run"), str(tmp_path / "bundle")
    options = ["--architecture", ARCHITECTURE, "--hidden-dim", "16", "--binarize", "stochastic", "--no-report"]
    trained = CliRunner().invoke(
        train_main, ["--dataset", "digits", "--epochs", "1", *options, "--conditional", "--out", run]
    )
    assert trained.exit_code == 0, trained.output
    assert f"{ARCHITECTURE} VAE 64-16-50, bernoulli, normal latent, 10 classes" in trained.output
    exported = CliRunner().invoke(export_main, [run, "--out", bundle, "--format", "all", "--graphs", "encoder"])
    assert exported.exit_code == 0, exported.output
    assert exported.output.count("passed") == 3
