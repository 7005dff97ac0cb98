"""Options from a TOML file, and back."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import click
import pytest
from click.core import ParameterSource
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevae.train.cli import main
from edgevae.train.numbers import Sizes
from edgevae.train.settings import config_option, dump_settings, read_settings, settings_for

NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
NUMBERS = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
VALUES = NUMBERS | TEXTS | TEXTS.map(lambda text: Path(text.replace("\0", "")))


@click.command()
@config_option
@click.option("--epochs", type=click.IntRange(min=1), default=100)
@click.option("--learning-rate", type=float, default=1e-3)
@click.option("--z-dim", "--z-dims", "z_dims", type=Sizes("32,16"), default="50")
@click.option("--latent", type=click.Choice(["normal", "mixture"]), default="normal")
@click.option("--jit", is_flag=True)
@click.option("--tf32/--no-tf32", default=False)
@click.option("--data", type=click.Path(path_type=Path))
@click.option("--tag", "tags", multiple=True)
@click.option("--range", "limits", type=(int, float), default=(0, 1.0))
@click.option("-v", "--verbose", count=True)
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> None:
    ctx.obj.update(options)
    ctx.obj["sources"] = {name: ctx.get_parameter_source(name) for name in options}


def called(*arguments: object) -> dict[str, Any]:
    options: dict[str, Any] = {}
    result = CliRunner().invoke(command, [*map(str, arguments)], obj=options)
    assert result.exit_code == 0, result.output
    return options


def refused(path: Path, content: str) -> str:
    """The message that a configuration file is refused with, in one line."""
    path.write_text(content, encoding="utf-8")
    result: Result = CliRunner().invoke(command, ["--config", str(path)], obj={})
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.toml"


def test_each_kind_of_option_is_set_by_a_file(path: Path) -> None:
    path.write_text("""
        verbose = 2
        tag = ["a", "b"]
        range = [3, 4]

        [data]
        data = "mine.npz"

        [model]
        z-dims = [32, 16]
        latent = "mixture"

        [training]
        epochs = 7
        learning_rate = 1
        jit = true
        tf32 = true
    """)
    options = called("--config", path)
    sources = options.pop("sources")
    assert options == {
        "verbose": 2,
        "tags": ("a", "b"),
        "limits": (3, 4.0),
        "data": Path("mine.npz"),
        "z_dims": (32, 16),
        "latent": "mixture",
        "epochs": 7,
        "learning_rate": 1.0,
        "jit": True,
        "tf32": True,
    }
    assert set(sources.values()) == {ParameterSource.DEFAULT_MAP}


@pytest.mark.parametrize("value", ["5", '"5"', "[5]"])
def test_sizes_are_written_as_a_number_as_text_or_as_an_array(path: Path, value: str) -> None:
    path.write_text(f"z-dim = {value}")
    assert called("--config", path)["z_dims"] == (5,)


def test_the_command_line_goes_before_the_file_and_the_file_before_the_defaults(path: Path) -> None:
    path.write_text('epochs = 7\nlatent = "mixture"\ntf32 = true\ntags = ["file"]')
    for arguments in (["--config", path, "--epochs", 9], ["--epochs", 9, "--config", path]):
        options = called(*arguments, "--no-tf32", "--tag", "line")
        assert (options["epochs"], options["latent"], options["learning_rate"]) == (9, "mixture", 1e-3)
        assert (options["tf32"], options["tags"]) == (False, ("line",))
        assert options["sources"]["epochs"] is ParameterSource.COMMANDLINE
        assert options["sources"]["learning_rate"] is ParameterSource.DEFAULT
    assert called()["epochs"] == 100


def test_a_value_out_of_range_is_refused_by_the_option_itself(path: Path) -> None:
    assert "Invalid value for '--epochs': 0 is not in the range x>=1" in refused(path, "epochs = 0")
    assert "Invalid value for '--latent': 'x' is not one of" in refused(path, 'latent = "x"')
    assert "Invalid value for '--z-dim' / '--z-dims': expected sizes" in refused(path, 'z-dim = ["a"]')


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epoch = 3", "epoch is no option; did you mean epochs?"),
        ("[training]\nlearning-rat = 3", "training.learning-rat is no option; did you mean learning-rate?"),
        ("[training]\n'a.epochs' = 3", "training.a.epochs is no option; did you mean epochs?"),
        ("qqqq = 3", "qqqq is no option; the options are data, epochs, jit, latent, learning-rate, range, tag, tf32,"),
        ("config = 'x'", "config is no option"),
        ("help = true", "help is no option"),
        ("[modle]\nlatent = 'normal'", "there is no table [modle]; the tables are [data], [model], [training]"),
        ("[training.more]\nepochs = 1", "training.more is no option"),
        ("[[training]]\nepochs = 1", "training is no option"),
        ("epochs = 'ten'", "epochs must be an integer, got the string 'ten'"),
        ("epochs = 1.0", "epochs must be an integer, got the number 1.0"),
        ("epochs = true", "epochs must be an integer, got true"),
        ("[training]\nepochs = [1, 2]", "training.epochs must be an integer, got an array of 2"),
        ("epochs = 2020-01-01", "epochs must be an integer, got the date or time 2020-01-01"),
        ("learning-rate = '1e-3'", "learning-rate must be a number, got the string '1e-3'"),
        ("learning-rate = false", "learning-rate must be a number, got false"),
        ("jit = 1", "jit must be true or false, got the integer 1"),
        ("jit = 'yes'", "jit must be true or false, got the string 'yes'"),
        ("latent = 3", "latent must be a string, got the integer 3"),
        ("data = [1]", "data must be a string, got an array of 1"),
        ("tag = 'ab'", "tag must be an array, as the option can be given several times, got the string 'ab'"),
        ("tag = ['a', 1]", "tag must be a string, got the integer 1"),
        ("range = [1]", "range must be an array of 2, got an array of 1"),
        ("range = ['x', 1]", "range must be an integer, got the string 'x'"),
        ("z-dims = true", "z-dims must be a string, a number or an array of them, got true"),
        ("z-dims = [[1]]", "z-dims must be a string, a number or an array of them, got an array of 1"),
        ("z_dim = 1\nz-dims = 2", "z_dim and z-dims are the same option; keep one"),
        ("learning-rate = 1\nlearning_rate = 2", "learning-rate and learning_rate are the same option; keep one"),
        ("epochs = 1\n[model]\nepochs = 2", "epochs and model.epochs are the same option; keep one"),
        ("epochs = 1\n\nepochs = 2", "the file is no TOML: Cannot overwrite a value (at"),
        ("epochs = 1\njit = yes", "the file is no TOML: Invalid value (at line 2, column 7)"),
    ],
)
def test_a_file_that_does_not_fit_the_command_is_refused(path: Path, content: str, message: str) -> None:
    assert f"Invalid value for --config: {path}: {message}" in refused(path, content).replace("- ", "-")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(click.BadParameter, match=r"missing\.toml: the file cannot be read: No such file or directory"):
        settings_for(command, tmp_path / "missing.toml")
    with pytest.raises(click.BadParameter, match="the file cannot be read: Is a directory"):
        read_settings(tmp_path)
    (tmp_path / "latin.toml").write_bytes("data = 'M\xe4rz'".encode("latin-1"))
    with pytest.raises(click.BadParameter, match=r"the file is not in UTF-8: .* at byte 9"):
        read_settings(tmp_path / "latin.toml")


def test_a_file_is_read_whatever_the_editor(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbfepochs = 3\r\n[data]\r\ndata = 'x'\r\n")
    assert read_settings(path) == {"epochs": 3, "data": "x"}


def test_settings_are_written_as_a_person_would(tmp_path: Path) -> None:
    values = {
        "z_dims": (32, 16),
        "data": Path("a/b"),
        "jit": False,
        "learning_rate": 1e-05,
        "out": None,
        "name": 'a"\\',
    }
    assert dump_settings(values) == (
        'z-dims = [32, 16]\ndata = "a/b"\njit = false\nlearning-rate = 1e-05\nname = "a\\"\\\\"\n'
    )


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(NAMES, VALUES | st.none() | st.lists(VALUES, max_size=4).map(tuple)))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    def expected(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(expected, value))
        return str(value) if isinstance(value, Path) else value

    path = tmp_path_factory.getbasetemp() / "settings.toml"
    path.write_bytes(dump_settings(values).encode())
    read = read_settings(path)
    assert read == {name: expected(value) for name, value in values.items() if value is not None}
    assert {name: type(value) for name, value in read.items()} == {
        name: type(expected(value)) for name, value in values.items() if value is not None
    }


@settings(max_examples=50, deadline=None)
@given(
    epochs=st.integers(1, 10**6),
    learning_rate=st.floats(allow_nan=False),
    z_dims=st.lists(st.integers(1, 99), min_size=1, max_size=3).map(tuple),
    latent=st.sampled_from(["normal", "mixture"]),
    tags=st.lists(TEXTS, max_size=3).map(tuple),
    jit=st.booleans(),
    data=st.none() | TEXTS.map(lambda text: Path(text.replace("\0", ""))),
)
def test_a_commands_effective_options_come_back_from_their_file(
    tmp_path_factory: pytest.TempPathFactory, **options: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "effective.toml"
    path.write_bytes(dump_settings(options).encode())
    effective = called("--config", path)
    effective.pop("sources")
    assert {name: effective[name] for name in options} == options
    path.write_bytes(dump_settings(effective).encode())
    again = called("--config", path)
    assert {name: again[name] for name in effective} == effective


def test_the_trainings_own_options_come_back_from_their_file(path: Path) -> None:
    line = ["--z-dims", "32,16", "--latent", "hierarchical", "--learning-rate", "1e-4", "--scale", "0,16", "--tf32"]
    with main.make_context("train", list(line)) as ctx:
        effective = ctx.params
    path.write_text(dump_settings(effective))
    with main.make_context("train", ["--config", str(path)]) as ctx:
        assert ctx.params == effective
    assert (effective["z_dims"], effective["scale"]) == ((32, 16), (0.0, 16.0))


def test_not_a_number_is_written_too(path: Path) -> None:
    path.write_text(dump_settings({"a": math.nan, "b": -math.inf}))
    read = read_settings(path)
    assert isinstance(read["a"], float)
    assert math.isnan(read["a"])
    assert read["b"] == -math.inf


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"a": object},
            "a must be a string, a number, a boolean, a path or a list of them in UTF-8, got <class",
        ),
        ({"a": (1, None)}, "a must be a string, a number, a boolean, a path or a list of them in UTF-8, got None"),
        ({"a": Path("\udcff")}, "a must be a string"),
        ({"a b": 1}, "a setting's name must be of letters, digits, - and _, got 'a b'"),
    ],
)
def test_what_toml_cannot_hold_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        dump_settings(values)
