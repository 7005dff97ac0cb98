"""`python -m train --config FILE`: options from a TOML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from edgevae.train.cli import main


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
        ("qqqq = 3", "qqqq is not an option; the options are architecture, batch-size, beta"),
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
