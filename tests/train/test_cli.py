"""`vae-train`: its options, its file of options, what it prints and writes."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from edgevae.train import load_run
from edgevae.train.cli import main

SMALL = ["--dataset", "digits", "--z-dim", "3", "--hidden-dim", "8"]


def train(*arguments: object, report: bool = False) -> Result:
    """Train a small model; a report takes seconds, many times as long as the training."""
    return CliRunner().invoke(main, [*SMALL, *map(str, arguments), *([] if report else ["--no-report"])])


def test_training_leaves_a_complete_run(tmp_path: Path) -> None:
    options = ["--epochs", 3, "--seed", 5, "--batch-size", 128, "--learning-rate", 0.01, "--out", tmp_path / "run"]
    result = train(*options, report=True)
    assert result.exit_code == 0, result.output
    run = load_run(tmp_path / "run")
    assert run.config.model.data_shape == (1, 8, 8)
    assert (run.config.training.seed, run.config.training.batch_size) == (5, 128)
    assert (run.config.dataset.name, run.config.dataset.num_train, run.config.dataset.num_test) == ("digits", 1437, 360)
    assert [line.epoch for line in run.metrics] == [1, 2, 3]
    assert run.metrics[-1].train_loss_nats < run.metrics[0].train_loss_nats
    assert all(line.complete for line in run.metrics)
    assert run.test_elbos is not None
    assert run.test_elbos.shape == (360,)
    assert run.test_elbo[0] == pytest.approx(float(run.test_elbos.mean()), rel=1e-5)
    assert run.test_elbo[1] == 10
    for picture in ("loss.png", "reconstructions.png"):
        with Image.open(tmp_path / "run" / picture) as image:
            assert len(image.convert("L").getcolors() or []) > 16  # something is drawn
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoint.safetensors",
        "config.json",
        "evaluation.json",
        "kl.png",
        "latent_map.png",
        "loss.png",
        "metrics.jsonl",
        "reconstructions.png",
        "report.html",
        "samples.png",
        "samples.safetensors",
        "test_elbos.safetensors",
        "traversals.png",
        "weights.safetensors",
    ]


def test_without_a_terminal_there_is_a_plain_line_an_epoch(tmp_path: Path) -> None:
    result = train("--epochs", 2, "--out", tmp_path / "run")
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["data", "model", "training", "device", "run"]
    assert lines[0].endswith("digits: 1,437 training, 360 test images, shape (1, 8, 8)")
    assert [line.split()[:2] for line in lines[5:7]] == [["epoch", "1/2"], ["epoch", "2/2"]]
    assert "test ELBO -" in lines[5]
    assert lines[-1].startswith("Test ELBO -")
    assert result.stderr.startswith("warning: 0 of 3 latent units are active: the posterior has collapsed")
    assert "\x1b" not in result.output


def test_on_a_terminal_there_is_a_bar(tmp_path: Path) -> None:
    controller, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    options = ["--epochs", "2", "--no-report", "--out", str(tmp_path / "run")]
    command = [sys.executable, "-m", "edgevae.train", *SMALL, *options]
    process = subprocess.Popen(command, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    output = b""
    while True:
        try:
            part = os.read(controller, 4096)
        except OSError:  # Linux's way to say that the other side has closed
            break
        if not part:
            break
        output += part
    os.close(controller)
    assert process.wait() == 0
    assert b"epoch 2/2" in output
    assert "━".encode() in output
    assert re.search(rb"loss \d+\.\d\d ", output)


def test_the_default_folder_is_named_after_the_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert train("--epochs", 1).exit_code == 0
    assert load_run(Path("runs/digits-mlp")).config.training.epochs == 1


@pytest.mark.parametrize(
    ("options", "name", "line"),
    [
        (
            ["--latent", "hierarchical", "--z-dims", "4,2"],
            "digits-mlp-hierarchical",
            "64-8-4-2, bernoulli, hierarchical",
        ),
        (["--latent", "mixture", "--components", "3"], "digits-mlp-mixture", "bernoulli, mixture of 3"),
        (["--conditional", "--architecture", "conv"], "digits-conv-conditional", "normal latent, 10 classes"),
        (["--likelihood", "normal", "--binarize", "threshold"], "digits-mlp-normal-threshold", "normal, normal latent"),
    ],
)
def test_choices_name_the_run_and_are_kept_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], name: str, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = train("--epochs", 1, *options)
    assert result.exit_code == 0, result.output
    assert line in result.output.splitlines()[1]
    run = load_run(Path("runs") / name)
    assert (run.labels is not None) == ("--conditional" in options)
    assert run.config.model.num_classes == (10 if "--conditional" in options else 0)
    if "--binarize" in options:
        assert run.config.training.binarize == "threshold"
        assert set(run.samples.unique().tolist()) == {0.0, 1.0}


def test_a_run_is_replaced_only_with_force(tmp_path: Path) -> None:
    assert train("--epochs", 1, "--out", tmp_path / "run").exit_code == 0
    before = (tmp_path / "run" / "weights.safetensors").read_bytes()
    refused = train("--epochs", 1, "--seed", 1, "--out", tmp_path / "run")
    assert refused.exit_code == 2
    assert "already holds a run" in refused.output
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == before
    assert train("--epochs", 1, "--seed", 1, "--out", tmp_path / "run", "--force").exit_code == 0
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() != before


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_cuda_without_a_device_is_exit_code_2_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = train("--cuda")
    assert result.exit_code == 2
    assert "--cuda was asked for, but" in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "Invalid value for '--epochs'"),
        (["--learning-rate", "-1"], "learning_rate must be a positive number, got -1.0"),
        (["--learning-rate", "nan"], "learning_rate must be a positive number, got nan"),
        (["--dataset", "cifar"], "'cifar' is not one of 'mnist'"),
        (["--data-dir", "."], "data_dir must not be given for digits"),
        (["--components", "4"], "--components goes with --latent mixture, got --latent normal"),
        (["--levels", "4"], "--levels goes with --likelihood categorical"),
        (["--latent", "hierarchical"], "has two or more sizes of at least 1, like z_dims 32,16"),
        (["--tf32"], "--tf32 goes with --cuda: the CPU has no TF32"),
        (["--resize", "28"], "expected 2 sizes with commas between them, like 28,28, got '28'"),
        (["--scale", "0,1,2"], "expected 2 numbers with commas between them, like 0,16, got '0,1,2'"),
        (["--z-dims", "a"], "expected sizes with commas between them, like 32,16, got 'a'"),
    ],
)
def test_bad_options_are_exit_code_2_and_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = train(*arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("batch_size", [256, 2000])
def test_a_training_that_diverges_is_one_message_and_keeps_the_old_run(tmp_path: Path, batch_size: int) -> None:
    # With one step an epoch the loss is still a number, and the evaluation is the first to see NaN.
    assert train("--epochs", 1, "--out", tmp_path / "run").exit_code == 0
    before = load_run(tmp_path / "run").metrics
    options = ["--learning-rate", 1e6, "--batch-size", batch_size, "--out", tmp_path / "run", "--force"]
    result = train("--epochs", 1, *options)
    assert result.exit_code == 2
    assert "with a lower learning rate" in result.output
    assert load_run(tmp_path / "run").metrics == before


def test_jit_trains_too(tmp_path: Path) -> None:
    assert train("--epochs", 2, "--jit", "--out", tmp_path / "run").exit_code == 0
    losses = [line.train_loss_nats for line in load_run(tmp_path / "run").metrics]
    assert losses[1] < losses[0]


def test_bfloat16_trains_too_and_is_kept_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)  # as of a PyTorch that does not tell
    assert train("--epochs", 2, "--precision", "bf16", "--out", tmp_path / "run").exit_code == 0
    run = load_run(tmp_path / "run")
    assert run.metrics[1].train_loss_nats < run.metrics[0].train_loss_nats
    assert run.config.training.precision == "bf16"
    result = train("--epochs", 3, "--resume", "--out", tmp_path / "run")
    assert result.exit_code == 0
    assert load_run(tmp_path / "run").config.training.precision == "bf16"


def test_a_run_is_resumed_with_its_own_options(tmp_path: Path) -> None:
    options = ["--epochs", 2, "--batch-size", 100, "--binarize", "threshold", "--out", tmp_path / "run"]
    assert train(*options).exit_code == 0
    more = CliRunner().invoke(main, ["--resume", "--epochs", "3", "--out", str(tmp_path / "run")])
    assert more.exit_code == 0, more.output
    assert f"{tmp_path / 'run'} (there already: 2 of 3 epochs, 30 steps made)" in more.output
    run = load_run(tmp_path / "run")
    assert (len(run.metrics), run.config.training.batch_size, run.config.training.binarize) == (3, 100, "threshold")
    assert not (tmp_path / "run" / "report.html").exists()
    assert train(*options, "--epochs", 3, "--out", tmp_path / "whole").exit_code == 0
    expected = load_run(tmp_path / "whole").vae.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in run.vae.state_dict().items())


def test_a_run_is_not_resumed_as_another(tmp_path: Path) -> None:
    assert train("--epochs", 1, "--out", tmp_path / "run").exit_code == 0
    other = train("--resume", "--seed", 3, "--out", tmp_path / "run")
    assert other.exit_code == 2
    assert "was begun with seed 0, got 3" in other.output
    both = train("--resume", "--force", "--out", tmp_path / "run")
    assert "give one of them" in both.output


def test_resume_starts_a_new_run_where_there_is_none(tmp_path: Path) -> None:
    assert train("--resume", "--epochs", 1, "--out", tmp_path / "run").exit_code == 0
    assert len(load_run(tmp_path / "run").metrics) == 1


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(tmp_path: Path) -> None:
    result = train("--dry-run", "--epochs", 7, "--schedule", "cosine", "--out", tmp_path / "run")
    assert result.exit_code == 0
    assert "7 epochs of 6 steps, batch size 256, Adam 0.001, cosine, seed 0" in result.output
    assert "mlp VAE 64-8-3, bernoulli, normal latent; 1,182 parameters" in result.output
    assert "Nothing was trained" in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--patience", 5], "patience 5 needs a validation ELBO"),
        (["--schedule", "plateau"], "schedule plateau needs a validation ELBO"),
        (["--latent", "mixture", "--jit"], "jit does not go with latent mixture"),
        (["--latent", "hierarchical", "--z-dims", "4,2", "--free-bits", 0.1], "free_bits go with latent normal"),
    ],
)
def test_a_dry_run_refuses_what_a_training_refuses(tmp_path: Path, options: list[object], message: str) -> None:
    for dry_run in (["--dry-run"], []):
        result = train(*options, *dry_run, "--out", tmp_path / "run")
        assert result.exit_code == 2
        assert message in result.output
    assert not (tmp_path / "run").exists()


def test_the_help_lists_the_options_by_section_the_common_ones_first() -> None:
    lines = CliRunner().invoke(main, ["--help"]).output.splitlines()
    headings = [line[:-1] for line in lines if re.fullmatch(r"[A-Z][a-z]+:", line)]
    assert headings == ["Data", "Model", "Objective", "Training", "Output", "Other"]
    firsts = [lines[lines.index(f"{heading}:") + 1].split()[0] for heading in headings]
    assert firsts == ["--dataset", "--architecture", "--beta", "--epochs", "--out", "--config"]


def test_options_come_from_a_file_and_the_command_line_takes_precedence(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text("[training]\nepochs = 1\nseed = 4\n[model]\nz-dims = [2]\n", encoding="utf-8")
    options = ["--dataset", "digits", "--hidden-dim", "8", "--no-report", "--seed", "5"]
    command = [*options, "--config", str(tmp_path / "my.toml"), "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    run = load_run(tmp_path / "run")
    training = run.config.training
    assert (training.epochs, training.seed, run.vae.config.z_dims) == (1, 5, (2,))


def test_own_data_are_trained_on_from_a_file(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(5, 3, (200, 6)).astype(np.float32)
    np.save(tmp_path / "sensors.npy", rows)
    options = ["--data", str(tmp_path / "sensors.npy"), "--likelihood", "normal", "--z-dim", "2", "--hidden-dim", "8"]
    steering = ["--validation-fraction", "0.2", "--patience", "2", "--epochs", "3", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(main, [*options, *steering, "--no-report"])
    assert result.exit_code == 0, result.output
    assert "sensors: 140 training, 40 validation, 20 test rows, shape (6,)" in result.output
    model = load_run(tmp_path / "run").vae.config
    assert model.data_loc == pytest.approx(tuple(rows.mean(0)), abs=1)
    assert len(run_metrics := load_run(tmp_path / "run").metrics) == 3
    assert all(line.validation_elbo_nats is not None for line in run_metrics)


def test_a_run_on_own_data_is_resumed_from_its_folder_alone_and_only_with_the_same_rows(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).random((200, 6)).astype(np.float32)
    np.save(tmp_path / "x.npy", rows)
    options = ["--data", str(tmp_path / "x.npy"), "--z-dim", "2", "--hidden-dim", "8", "--no-report", "--epochs", "1"]
    assert CliRunner().invoke(main, [*options, "--out", str(tmp_path / "run")]).exit_code == 0
    again = ["--resume", "--out", str(tmp_path / "run"), "--epochs"]
    result = CliRunner().invoke(main, [*again, "2"])
    assert result.exit_code == 0, result.output
    assert [line.epoch for line in load_run(tmp_path / "run").metrics] == [1, 2]
    result = CliRunner().invoke(main, [*again, "3", "--split-seed", "5"])
    assert result.exit_code == 2
    assert "was begun with other rows of x: the data changed, or were split in another way" in result.output
    np.save(tmp_path / "x.npy", rows * np.float32(0.5))
    assert CliRunner().invoke(main, [*again, "3"]).exit_code == 2
    np.save(tmp_path / "x.npy", rows)
    assert CliRunner().invoke(main, [*again, "3"]).exit_code == 0


def test_sizes_of_zero_are_refused_before_data_are_loaded(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--z-dims", "8,0", "--out", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "expected sizes of at least 1, got 0" in result.output


def test_data_that_do_not_fit_are_one_message(tmp_path: Path) -> None:
    np.save(tmp_path / "sensors.npy", np.full((20, 6), 7, np.float32))
    result = CliRunner().invoke(main, ["--data", str(tmp_path / "sensors.npy"), "--out", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "or take --likelihood normal" in result.output
    assert not (tmp_path / "run").exists()


# --config


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.toml"


def options(*arguments: object) -> dict[str, Any]:
    """The options of the command as click understands them."""
    return main.make_context("vae-train", [*map(str, arguments)]).params


def message(path: Path) -> str:
    """What the file is refused with."""
    with pytest.raises(click.UsageError) as refused:
        options("--config", path)
    return refused.value.format_message()


def test_each_kind_of_option_is_set_by_a_file(path: Path) -> None:
    path.write_text(f"""
        seed = 4

        [data]
        data = '{path}'
        scale = [0, 16.5]
        test-fraction = 0.25

        [model]
        z-dims = [32, 16]
        latent = "hierarchical"
        conditional = true

        [objective]
        beta_warmup = 3

        [training]
        epochs = 7
        learning_rate = 1
        jit = false
        tf32 = true

        [output]
        report = false
    """)
    found = options("--config", path)
    expected = {
        "seed": 4,
        "data": path,
        "scale": (0, 16.5),
        "test_fraction": 0.25,
        "z_dims": (32, 16),
        "latent": "hierarchical",
        "conditional": True,
        "beta_warmup": 3,
        "epochs": 7,
        "learning_rate": 1.0,
        "jit": False,
        "tf32": True,
        "report": False,
        "batch_size": 256,
    }
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("value", ["5", '"5"', "[5]"])
@pytest.mark.parametrize("key", ["z-dim", "z-dims", "z_dims"])
def test_sizes_are_a_number_text_or_an_array(path: Path, key: str, value: str) -> None:
    path.write_text(f"{key} = {value}")
    assert options("--config", path)["z_dims"] == (5,)


def test_the_command_line_takes_precedence_over_the_file_and_the_file_over_the_defaults(path: Path) -> None:
    path.write_text('epochs = 7\nlatent = "mixture"\ntf32 = true')
    for arguments in (["--config", path, "--epochs", 9], ["--epochs", 9, "--config", path]):
        found = options(*arguments, "--no-tf32")
        assert (found["epochs"], found["latent"], found["tf32"], found["learning_rate"]) == (9, "mixture", False, 1e-3)
    assert options()["epochs"] == 100


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("epochs = 0", "'--epochs': 0 is not in the range x>=1"),
        ("epochs = 'ten'", "'--epochs': 'ten' is not a valid integer"),
        ("epochs = 1.5", "'--epochs': '1.5' is not a valid integer"),
        ("epochs = true", "'--epochs': 'True' is not a valid integer"),
        ("epochs = [1, 2]", "'--epochs': '1,2' is not a valid integer"),
        ("epochs = 2020-01-01", "'--epochs': '2020-01-01' is not a valid integer"),
        ("jit = 'perhaps'", "'--jit': 'perhaps' is not a valid boolean"),
        ("latent = 3", "'--latent': '3' is not one of"),
        ("z-dims = [[1]]", "'--z-dim' / '--z-dims': expected sizes"),
    ],
)
def test_a_value_that_the_option_does_not_take_is_an_error(path: Path, content: str, expected: str) -> None:
    path.write_text(content)
    assert f"Invalid value for {expected}" in message(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("epoch = 3", "epoch is not an option; did you mean epochs?"),
        ("[training]\nlearning-rat = 3", "learning-rat is not an option; did you mean learning-rate?"),
        ("[training]\n'a.epochs' = 3", "a.epochs is not an option; did you mean epochs?"),
        ("qqqq = 3", "qqqq is not an option; the options are architecture, architecture-option, architecture-options"),
        ("config = 'x'", "config is not an option"),
        ("help = true", "help is not an option"),
        ("[modle]\nlatent = 'normal'", "there is no table [modle]; the tables are [data], [model], [objective]"),
        ("[training.epochs]\nmore = 1", "epochs must be a value, got a table"),
        ("[[training]]\nepochs = 1", "training is not an option"),
        ("z_dim = 1\nz-dims = 2", "z-dims is set twice"),
        ("learning-rate = 1\nlearning_rate = 2", "learning_rate is set twice"),
        ("epochs = 1\n[model]\nepochs = 2", "epochs is set twice"),
        ("epochs = 1\n\nepochs = 2", "the file is not TOML: Cannot overwrite a value (at"),
        ("epochs = 1\njit = yes", "the file is not TOML: Invalid value (at line 2, column 7)"),
    ],
)
def test_a_file_that_does_not_fit_the_command_is_an_error(path: Path, content: str, expected: str) -> None:
    path.write_text(content)
    assert f"Invalid value for --config: {path}: {expected}" in message(path)


def test_a_file_that_cannot_be_read_is_an_error(path: Path, tmp_path: Path) -> None:
    assert "the file cannot be read: No such file or directory" in message(tmp_path / "missing.toml")
    assert "the file cannot be read: Is a directory" in message(tmp_path)
    path.write_bytes("data = 'M\xe4rz'".encode("latin-1"))
    assert "the file is not in UTF-8: " in message(path)


def test_a_file_may_have_a_byte_order_mark_and_windows_line_ends(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbfepochs = 3\r\n[data]\r\ndataset = 'digits'\r\n")
    found = options("--config", path)
    assert (found["epochs"], found["dataset"]) == (3, "digits")
