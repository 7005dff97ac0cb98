"""`python -m train.runs`: runs that the training's own writer has written, listed and compared."""

from __future__ import annotations

import dataclasses
import json
import os
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from edgevae.train import DatasetInfo, EpochMetrics, ModelConfig, RunWriter, Trainer, TrainingConfig, run_config
from edgevae.train.evaluation import Evaluation
from edgevae.train.runs.cli import main

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
    samples: torch.Tensor = SAMPLES,
    date: int | None = None,
) -> Path:
    writer = RunWriter(path, run_config(model, training, data), samples)
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


def compared(a: Path, b: Path) -> dict[str, Any]:
    result = call("compare", a, b, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def change(path: Path, section: str, **values: object) -> None:
    """Write `config.json` as another version would have."""
    config = json.loads((path / "config.json").read_text())
    config[section] = {name: value for name, value in (config[section] | values).items() if value is not None}
    (path / "config.json").write_text(json.dumps(config))


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
    result = call(tmp_path)
    assert result.exit_code == 0
    header, first, second = result.stdout.splitlines()
    assert "digits: mlp 16-3-2, bernoulli, normal  " in first
    assert "digits: mlp 16-3-2, normal, mixture of 4, 10 classes  " in second
    end = header.index("test ELBO") + len("test ELBO")
    assert (first[:end].split()[-1], second[:end].split()[-1]) == ("-7.25", "-1234.50")
    assert header.index("state") == first.index("finished") == second.index("unfinished")
    assert "1/2" in second
    assert "validation" not in header


def test_a_validation_elbo_has_its_column_where_there_is_one(tmp_path: Path) -> None:
    write(tmp_path / "a", validation_elbo_nats=-6.5)
    write(tmp_path / "b")
    result = call(tmp_path, "--sort", "name")
    header, first, second = result.stdout.splitlines()
    end = header.index("validation") + len("validation")
    assert first[:end].endswith("-6.50")
    assert second[:end].endswith(" -")


@pytest.mark.parametrize(("columns", "stamp"), [(80, "-7.25"), (200, "mlp 16-3-2, bernoulli, normal")])
def test_on_a_terminal_there_is_a_table_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: int, stamp: str
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    write(tmp_path / "[red]run")  # no markup
    output = call(tmp_path).stdout
    assert "───" in output
    assert "[red]run" in output
    assert stamp in output
    assert "…" not in output
    assert all(len(line) <= columns for line in output.splitlines()[1:])


def test_on_a_terminal_a_long_option_is_shown_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    names = tuple(f"class{number}" for number in range(20))
    write(tmp_path / "a")
    write(tmp_path / "b", data=dataclasses.replace(DATA, class_names=names))
    output = call("compare", tmp_path / "a", tmp_path / "b").stdout
    assert all(name in output for name in names)


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


def test_a_run_of_the_first_version_is_listed_with_defaults(tmp_path: Path) -> None:
    path = write(tmp_path / "old", evaluation=None)
    line = {"epoch": 2, "train_loss_nats": 101.0, "test_elbo_nats": -101.4, "epoch_seconds": 5.4, "complete": True}
    config = {
        "schema_version": 1,
        "model": {"data_shape": [1, 4, 4], "z_dim": 2, "hidden_dim": 3},
        "training": {"epochs": 2, "batch_size": 256, "learning_rate": 0.001, "seed": 0, "jit": False},
        "dataset": {"name": "mnist", "num_train": 60000, "num_test": 10000},
        "producers": {"edgevae": "0.1.0"},
    }
    (path / "config.json").write_text(json.dumps(config))
    (path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    (path / "checkpoint.safetensors").unlink()
    (run,) = listed(tmp_path)
    assert (run["state"], run["test_elbo_nats"], run["num_particles"]) == ("finished", -101.4, None)
    assert (run["model"]["architecture"], run["model"]["latent"]) == ("mlp", "normal")
    write(tmp_path / "new", data=DatasetInfo("mnist", 60000, 10000))
    options = compared(path, tmp_path / "new")["options"]
    assert [name for name in options if not name.startswith("producers.")] == []  # defaults are no differences


@pytest.mark.parametrize(
    ("file", "content", "fault"),
    [
        ("config.json", b'{"schema_version": 1', "config.json: Input data was truncated"),
        ("config.json", b"[]", "config.json: Expected `object`, got `array`"),
        ("config.json", b'{"schema_version": 99}', "config.json has schema version 99, this edgevae reads up to 1"),
        ("config.json", b"\xff\xfe", "config.json: "),
        ("config.json", None, "config.json is missing"),
        ("metrics.jsonl", b'{"epoch": 1}\n{"epoch": "x"}\n', "metrics.jsonl: Expected `int`, got `str`"),
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
    result = call(tmp_path, "--sort", "name")
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    _, broken, whole, *rest = result.stdout.splitlines()
    assert broken.split()[-1] == "damaged"
    assert whole.split()[-1] == "finished"
    assert rest[1].startswith(f"broken is damaged: {fault}")
    assert json.loads(call(tmp_path, "--sort", "name", "--json").stdout)[0]["fault"].startswith(fault)
    refused = call("compare", tmp_path / "whole", path)
    assert refused.exit_code == 1
    assert f"the run in {path} is damaged: {fault}" in refused.output


def test_a_folder_in_the_place_of_a_file_is_a_fault(tmp_path: Path) -> None:
    path = write(tmp_path / "broken")
    (path / "metrics.jsonl").unlink()
    (path / "metrics.jsonl").mkdir()
    result = call(tmp_path)
    assert result.exit_code == 1
    assert "broken is damaged: metrics.jsonl: Is a directory" in result.stdout


def test_a_name_with_a_line_end_keeps_to_its_line(tmp_path: Path) -> None:
    write(tmp_path / "two\nlines\x1b[2J")
    result = call(tmp_path)
    assert len(result.stdout.splitlines()) == 2
    assert r"two\nlines\x1b[2J" in result.stdout


def test_what_is_no_run_is_left_out_and_one_run_can_be_named(tmp_path: Path) -> None:
    write(tmp_path / "run")
    (tmp_path / "notes").mkdir()
    (tmp_path / "file.txt").touch()
    assert [run["name"] for run in listed(tmp_path)] == ["run"]
    assert [run["name"] for run in listed(tmp_path / "run")] == ["run"]


def test_without_runs_there_is_a_word_and_without_a_folder_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = call(tmp_path)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "There are no runs in" in result.stderr
    assert listed(tmp_path) == []
    monkeypatch.chdir(tmp_path)
    result = call()
    assert result.exit_code == 2
    assert "the folder runs cannot be read (No such file or directory); train a run with python -m train" in (
        " ".join(result.stderr.split())
    )


def test_a_comparison_shows_the_options_that_differ_and_the_numbers(tmp_path: Path) -> None:
    a = write(tmp_path / "a", training=dataclasses.replace(TRAINING, epochs=3))
    more = dataclasses.replace(EVALUATION, elbo_nats=-6.0, reconstruction_nats=-4.0, kl_nats=2.0, active_units=2)
    b = write(tmp_path / "b", dataclasses.replace(MODEL, hidden_dim=5), elbos=(-9.0, -8.0, -6.5), evaluation=more)
    result = compared(a, b)
    assert result["options"] == {"model.hidden_dim": {"a": 3, "b": 5}, "training.epochs": {"a": 3, "b": 2}}
    assert result["metrics"] == {
        "test_elbo_nats": {"a": -7.25, "b": -6.0, "difference": 1.25},
        "test_reconstruction_nats": {"a": -5.0, "b": -4.0, "difference": 1.0},
        "test_kl_nats": {"a": 2.25, "b": 2.0, "difference": -0.25},
        "test_iw_bound_nats": {"a": -7.0, "b": -7.0, "difference": 0.0},
        "active_units": {"a": 1, "b": 2, "difference": 1},
        "train_loss_nats": {"a": 9.0, "b": 7.5, "difference": -1.5},
        "epochs": {"a": 2, "b": 3, "difference": 1},
        "training_seconds": {"a": 3.0, "b": 4.5, "difference": 1.5},
    }
    assert result["notes"] == []
    lines = [line.split() for line in call("compare", a, b).stdout.splitlines()]
    assert ["option", "a", "b"] in lines
    assert ["model.hidden_dim", "3", "5"] in lines
    assert ["test_elbo_nats", "-7.25", "-6.00", "+1.25"] in lines
    assert ["epochs", "2", "3", "+1"] in lines


@pytest.mark.parametrize(
    ("other", "note"),
    [
        ({"data": DatasetInfo("mnist", 1437, 360)}, "the data's name is digits in a, mnist in b"),
        ({"data": DatasetInfo("digits", 1437, 100)}, "the data's num_test is 360 in a, 100 in b"),
        ({"training": dataclasses.replace(TRAINING, binarize="threshold")}, "the binarization is none in a, threshold"),
        ({"model": dataclasses.replace(MODEL, likelihood="normal")}, "the likelihood is bernoulli in a, normal in b"),
        ({"model": dataclasses.replace(MODEL, num_classes=10)}, "the condition is p(x) in a, p(x|y) in b"),
        ({"samples": torch.ones(3, 1, 4, 4)}, "the test observations are others"),
    ],
)
def test_elbos_of_different_things_have_no_difference_but_a_note(
    tmp_path: Path, other: dict[str, Any], note: str
) -> None:
    result = compared(write(tmp_path / "a"), write(tmp_path / "b", **other))
    assert len(result["notes"]) == 1
    assert result["notes"][0].startswith(f"The ELBOs are not comparable: {note}")
    assert result["metrics"]["test_elbo_nats"] == {"a": -7.25, "b": -7.25, "difference": None}
    assert result["metrics"]["train_loss_nats"]["difference"] is None
    assert result["metrics"]["active_units"]["difference"] == 0
    assert note in call("compare", tmp_path / "a", tmp_path / "b").stdout


def test_another_number_of_training_images_leaves_elbos_comparable(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a"), write(tmp_path / "b", data=dataclasses.replace(DATA, num_train=500))
    result = compared(a, b)
    assert result["options"] == {"dataset.num_train": {"a": 1437, "b": 500}}
    assert result["notes"] == []
    assert result["metrics"]["test_elbo_nats"]["difference"] == 0


def test_notes_say_what_is_unfinished_and_estimated_otherwise(tmp_path: Path) -> None:
    a = write(tmp_path / "a", training=dataclasses.replace(TRAINING, beta=4.0))
    b = write(tmp_path / "b", elbos=(-8.0,), evaluation=None)
    result = compared(a, b)
    assert [note.partition(":")[0] for note in result["notes"]] == [
        "b is unfinished",
        "The test ELBOs are means of other numbers of particles, 10 and 1",
        "The training losses are not comparable",
    ]
    assert result["metrics"]["test_elbo_nats"]["difference"] == -0.75
    assert result["metrics"]["train_loss_nats"]["difference"] is None


def test_importance_weighted_bounds_of_other_particles_are_not_subtracted(tmp_path: Path) -> None:
    a = write(tmp_path / "a")
    b = write(tmp_path / "b", evaluation=dataclasses.replace(EVALUATION, iw_bound_nats=-6.5, iw_particles=5000))
    result = compared(a, b)
    assert result["metrics"]["test_iw_bound_nats"] == {"a": -7.0, "b": -6.5, "difference": None}
    assert result["metrics"]["test_elbo_nats"]["difference"] == 0
    assert result["notes"] == [
        "The importance-weighted bounds are not comparable: 50 and 5000 particles, more are tighter."
    ]


def test_an_option_that_this_version_does_not_know_is_compared_all_the_same(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a"), write(tmp_path / "b")
    change(b, "training", momentum=0.5)
    assert compared(a, b)["options"] == {"training.momentum": {"a": None, "b": 0.5}}


def test_runs_are_compared_by_name_and_equal_names_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "runs" / "a")
    shutil.copytree(tmp_path / "runs" / "a", tmp_path / "b" / "a")
    monkeypatch.chdir(tmp_path)
    result = call("compare", "a", "b/a")
    assert result.exit_code == 0
    assert "No option differs." in result.stdout
    assert "runs/a" in result.stdout
    assert "b/a" in result.stdout
    result = call("compare", "a", "nowhere")
    assert result.exit_code == 2
    assert "there is no run nowhere, nor runs/nowhere" in " ".join(result.stderr.split())


def test_the_module_is_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["edgevae.train.runs", str(tmp_path), "--json"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("edgevae.train.runs", run_name="__main__")
    assert ended.value.code == 0
    assert [run["name"] for run in json.loads(capsys.readouterr().out)] == ["run"]


def test_the_help_names_commands_and_exit_codes() -> None:
    result = call("--help")
    assert result.exit_code == 0
    assert "Usage: python -m train.runs [FOLDER] | list [FOLDER] | compare A B" in result.stdout
    assert "Exit codes: 0 done; 1 a run is damaged; 2 wrong usage" in result.stdout
