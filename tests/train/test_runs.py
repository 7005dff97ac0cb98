"""`python -m train.runs`: runs that the training's own writer has written, listed."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from edgevae.train import DatasetInfo, EpochMetrics, ModelConfig, RunWriter, Trainer, TrainingConfig, run_config
from edgevae.train.evaluation import Evaluation
from edgevae.train.runs import main

REPOSITORY = Path(__file__).parents[2]
MODEL = ModelConfig((1, 4, 4), z_dim=2, hidden_dim=3)
TRAINING = TrainingConfig(epochs=2)
DATA = DatasetInfo("digits", 1437, 360)
EVALUATION = Evaluation(
    elbo_nats=-7.25,
    reconstruction_nats=-5.0,
    kl_nats=2.25,
    kl_per_dim_nats=(2.0, 0.25),
    active_units=1,
    num_images=360,
    num_particles=10,
    iw_bound_nats=-7.0,
    iw_particles=50,
)
SAMPLES = torch.zeros(3, 1, 4, 4)


def write(
    path: Path,
    model: ModelConfig = MODEL,
    training: TrainingConfig = TRAINING,
    data: DatasetInfo = DATA,
    *,
    elbos: tuple[float, ...] = (-9.0, -8.0),
    evaluation: Evaluation | None = EVALUATION,
    complete: bool = True,
    validation_elbo_nats: float | None = None,
    date: int | None = None,
) -> Path:
    writer = RunWriter(path, run_config(model, training, data), SAMPLES)
    checkpoint = Trainer(model, training, torch.device("cpu")).checkpoint()
    writer.save_checkpoint(checkpoint)
    for epoch, elbo in enumerate(elbos, 1):
        metrics = EpochMetrics(
            epoch=epoch,
            train_loss_nats=1 - elbo,
            test_elbo_nats=elbo,
            num_particles=1,
            epoch_seconds=1.5,
            complete=complete or epoch < len(elbos),
            validation_elbo_nats=validation_elbo_nats,
            validation_elbo_robust_nats=validation_elbo_nats,
        )
        writer.save_epoch(checkpoint, metrics)
    if evaluation:
        writer.save_evaluations({"test": evaluation}, torch.zeros(360))
    if date is not None:
        os.utime(path / "metrics.jsonl", (date, date))
    return path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)], prog_name="python -m train.runs")


def listed(*arguments: object) -> list[dict[str, Any]]:
    result = call("list", *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_run_is_listed_with_what_it_was_trained_on_and_what_came_of_it(tmp_path: Path) -> None:
    path = write(tmp_path / "small", date=1_700_000_000)
    (run,) = listed(tmp_path)
    assert (run["name"], run["dataset"], run["state"], run["fault"]) == ("small", "digits", "finished", None)
    assert (run["epoch"], run["epochs"]) == (2, 2)
    assert (run["test_elbo_nats"], run["num_particles"]) == (-7.25, 10)  # of the evaluation, not of the last epoch
    assert run["model"] == dataclasses.asdict(MODEL) | {"data_shape": [1, 4, 4], "upper_dims": []}
    assert run["size_bytes"] == sum(file.stat().st_size for file in path.iterdir())
    assert run["date"].startswith("2023-11-1")


def test_the_plain_list_has_aligned_columns(tmp_path: Path) -> None:
    mixture = dataclasses.replace(MODEL, latent="mixture", components=4, likelihood="normal", num_classes=10)
    write(tmp_path / "a", date=2)
    write(tmp_path / "a-longer-name", mixture, evaluation=None, elbos=(-1234.5,), date=1)
    result = call("list", tmp_path)
    assert result.exit_code == 0
    header, first, second = result.stdout.splitlines()
    assert "digits: mlp VAE 16-3-2, bernoulli, normal latent  " in first
    assert "digits: mlp VAE 16-3-2, normal, mixture of 4, 10 classes  " in second
    end = header.index("test ELBO") + len("test ELBO")
    assert (first[:end].split()[-1], second[:end].split()[-1]) == ("-7.25", "-1234.50")
    assert header.index("state") == first.index("finished") == second.index("unfinished")
    assert "1/2" in second
    assert "validation" not in header


def test_a_validation_elbo_has_its_column_where_there_is_one(tmp_path: Path) -> None:
    write(tmp_path / "a", validation_elbo_nats=-6.5)
    write(tmp_path / "b")
    result = call("list", tmp_path, "--sort", "name")
    header, first, second = result.stdout.splitlines()
    end = header.index("validation") + len("validation")
    assert first[:end].endswith("-6.50")
    assert second[:end].endswith(" -")


@pytest.mark.parametrize(("columns", "stamp"), [(80, "-7.25"), (200, "mlp VAE 16-3-2, bernoulli, normal latent")])
def test_on_a_terminal_there_is_a_table_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: int, stamp: str
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    write(tmp_path / "[red]run")  # no markup
    output = call("list", tmp_path).stdout
    assert "───" in output
    assert "[red]run" in output
    assert stamp in output
    assert "…" not in output
    assert all(len(line) <= columns for line in output.splitlines()[1:])


@pytest.mark.parametrize(
    ("options", "state"),
    [
        ({}, "finished"),
        ({"elbos": (-9.0,)}, "finished"),  # stopped early, by patience
        ({"elbos": (-9.0,), "evaluation": None}, "unfinished"),
        ({"elbos": (-9.0, -8.0), "evaluation": None}, "unfinished"),  # killed before its evaluation
        ({"elbos": (), "evaluation": None}, "unfinished"),
        ({"complete": False, "evaluation": None}, "interrupted"),
    ],
)
def test_the_state_of_a_run(tmp_path: Path, options: dict[str, Any], state: str) -> None:
    write(tmp_path / "run", **options)
    (run,) = listed(tmp_path)
    assert run["state"] == state


def test_the_order_is_by_date_by_elbo_or_by_name(tmp_path: Path) -> None:
    for name, date, elbo in (("b", 300, -9.0), ("a", 100, -7.0), ("c", 200, -8.0)):
        write(tmp_path / name, elbos=(elbo,), evaluation=None, date=date)
    write(tmp_path / "none", elbos=(), evaluation=None)
    os.utime(tmp_path / "none", (50, 50))
    assert [run["name"] for run in listed(tmp_path)] == ["b", "c", "a", "none"]
    assert [run["name"] for run in listed(tmp_path, "--sort", "elbo")] == ["a", "c", "b", "none"]
    assert [run["name"] for run in listed(tmp_path, "--sort", "name")] == ["a", "b", "c", "none"]


@pytest.mark.parametrize(
    ("file", "content", "fault"),
    [
        ("config.json", b'{"schema_version": 1', "config.json: Input data was truncated"),
        ("config.json", b"[]", "config.json: Expected `object`, got `array`"),
        ("config.json", b'{"schema_version": 99}', "config.json has schema version 99, this edgevae reads 1"),
        ("config.json", b"\xff\xfe", "config.json: "),
        ("config.json", None, "config.json is missing"),
        ("metrics.jsonl", b'{"epoch": "x"}\n', "metrics.jsonl: Expected `int`, got `str`"),
        ("metrics.jsonl", b'{"epoch": 1}\n{"ep', "metrics.jsonl: "),
        ("weights.safetensors", None, "weights.safetensors is missing"),
        ("evaluation.json", b'{"test": {"elbo_nats": "x"}}', "evaluation.json: Expected `float"),
    ],
)
def test_a_damaged_run_is_listed_with_its_fault(tmp_path: Path, file: str, content: bytes | None, fault: str) -> None:
    path = write(tmp_path / "broken")
    write(tmp_path / "whole")
    (path / file).unlink()
    if content is not None:
        (path / file).write_bytes(content)
    result = call("list", tmp_path, "--sort", "name")
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    _, broken, whole, *rest = result.stdout.splitlines()
    assert broken.split()[-1] == "damaged"
    assert whole.split()[-1] == "finished"
    assert rest[1].startswith(f"broken is damaged: {fault}")
    assert json.loads(call("list", tmp_path, "--sort", "name", "--json").stdout)[0]["fault"].startswith(fault)


def test_a_run_with_a_folder_in_place_of_a_file_is_damaged(tmp_path: Path) -> None:
    path = write(tmp_path / "broken")
    (path / "metrics.jsonl").unlink()
    (path / "metrics.jsonl").mkdir()
    result = call("list", tmp_path)
    assert result.exit_code == 1
    assert "broken is damaged: metrics.jsonl: Is a directory" in result.stdout


def test_a_line_break_in_a_name_is_escaped(tmp_path: Path) -> None:
    write(tmp_path / "two\nlines\x1b[2J")
    result = call("list", tmp_path)
    assert len(result.stdout.splitlines()) == 2
    assert r"two\nlines\x1b[2J" in result.stdout


def test_other_folders_are_left_out_and_one_run_can_be_named(tmp_path: Path) -> None:
    write(tmp_path / "run")
    (tmp_path / "notes").mkdir()
    (tmp_path / "file.txt").touch()
    assert [run["name"] for run in listed(tmp_path)] == ["run"]
    assert [run["name"] for run in listed(tmp_path / "run")] == ["run"]


def test_no_runs_is_a_message_and_no_folder_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = call("list", tmp_path)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "There are no runs in" in result.stderr
    assert listed(tmp_path) == []
    monkeypatch.chdir(tmp_path)
    result = call("list")
    assert result.exit_code == 2
    assert "the folder runs cannot be read (No such file or directory); train a run with python -m train" in (
        " ".join(result.stderr.split())
    )


@pytest.mark.parametrize("name", ["edgevae.train.runs", "train.runs"])
def test_the_module_is_a_program_and_loads_nothing_twice(tmp_path: Path, name: str) -> None:
    write(tmp_path / "run")
    folder = REPOSITORY if name == "train.runs" else tmp_path  # a checkout, or anywhere else
    command = [sys.executable, "-X", "importtime", "-m", name, "list", str(tmp_path), "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert [run["name"] for run in json.loads(done.stdout)] == ["run"]
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "edgevae.train.run" in loaded
    assert not any(module.startswith("train.") for module in loaded)


def test_without_a_command_the_runs_in_runs_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "runs" / "small")
    monkeypatch.chdir(tmp_path)
    assert call().stdout == call("list").stdout
    assert "small" in call().stdout


def test_the_help_names_the_exit_codes() -> None:
    result = call("list", "--help")
    assert result.exit_code == 0
    assert "Usage: python -m train.runs list [OPTIONS] [FOLDER]" in result.stdout
    assert "Exit codes: 0 done; 1 a run is damaged; 2 wrong usage" in result.stdout
