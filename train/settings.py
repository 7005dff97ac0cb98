"""A command's options from a TOML file.

    seed = 3

    [model]
    z-dims = [32, 16]

    [training]
    learning-rate = 1e-3
    jit = false

The command line goes before the file, the file before the defaults. A path in the file is read as on the command line:
from the folder in which the command is run.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from click import types

from .settings_file import dump_settings, read_keys, read_settings, refuse

__all__ = ["config_option", "dump_settings", "read_settings", "settings_for", "use_settings"]

_Command = TypeVar("_Command", bound=Callable[..., Any] | click.Command)


def config_option(command: _Command) -> _Command:
    """Give a command the option `--config`, a TOML file that sets what the command line does not."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=use_settings,
        help="TOML file with options, like learning-rate = 1e-3; the command line goes before it.",
    )(command)


def use_settings(ctx: click.Context, _param: click.Parameter, path: Path | None) -> Path | None:
    """Make the settings in `path` the defaults of the command; the callback of an eager option, so that it comes first.

    Raises:
        click.BadParameter: As `settings_for`.
    """
    if path is not None:
        ctx.default_map = {**(ctx.default_map or {}), **settings_for(ctx.command, path)}
    return path


def settings_for(command: click.Command, path: Path) -> dict[str, object]:
    """Return the settings in `path` as a `default_map` of `command`; ranges and choices are checked by click, later.

    Args:
        command: Whose options may be set: all but the eager ones, like `--help`.
        path: The TOML file.

    Returns:
        Values by parameter name. An array is a tuple where the option can be given several times or takes several
        values; where the option has a type of its own, like sizes, it is the text with commas between the elements.

    Raises:
        click.BadParameter: As `read_settings`; or a key is no option, an option is set under two names, or a value has
            another type than the option.
    """
    options = _options_by_name(command)
    settings: dict[str, object] = {}
    written: dict[str, str] = {}
    for name, (key, value) in read_keys(path).items():
        if name not in options:
            refuse(path, f"{key} is no option{_nearest(name, options)}")
        option = options[name]
        parameter = str(option.name)
        if parameter in settings:
            refuse(path, f"{written[parameter]} and {key} are the same option; keep one")
        written[parameter] = key
        try:
            settings[parameter] = _value_for(option, value)
        except _UnexpectedError as error:
            refuse(path, f"{key} must be {error}")
    return settings


def _options_by_name(command: click.Command) -> dict[str, click.Option]:
    """Return the options that a file may set, by their parameter's name and by each long name that they have."""
    options: dict[str, click.Option] = {}
    for option in command.params:
        if isinstance(option, click.Option) and not option.is_eager:
            for name in (str(option.name), *(opt[2:] for opt in option.opts if opt.startswith("--"))):
                options[name.replace("-", "_")] = option
    return options


def _nearest(name: str, options: Mapping[str, click.Option]) -> str:
    near = difflib.get_close_matches(name, options, n=1)
    if near:
        return f"; did you mean {near[0].replace('_', '-')}?"
    names = sorted({max(option.opts, key=len).lstrip("-") for option in options.values()})
    return f"; the options are {', '.join(names)}"


class _UnexpectedError(Exception):
    """A value of the wrong type; says which was expected, and what came."""

    def __init__(self, expected: str, value: object) -> None:
        super().__init__(f"{expected}, got {_described(value)}")


def _value_for(option: click.Option, value: object) -> object:
    if not option.multiple:
        return _values(option, value)
    if not isinstance(value, list):
        raise _UnexpectedError("an array, as the option can be given several times", value)
    return tuple(_values(option, element) for element in value)


def _values(option: click.Option, value: object) -> object:
    if option.nargs == 1:
        return _one_value(option.type, value)
    if not isinstance(value, list) or len(value) != option.nargs:
        raise _UnexpectedError(f"an array of {option.nargs}", value)
    kinds = option.type.types if isinstance(option.type, types.Tuple) else [option.type] * option.nargs
    return tuple(_one_value(kind, element) for kind, element in zip(kinds, value, strict=True))


def _one_value(kind: Any, value: object) -> object:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(kind, types.BoolParamType):
        expected, fits = "true or false", isinstance(value, bool)
    elif isinstance(kind, types.IntParamType):
        expected, fits = "an integer", number and not isinstance(value, float)
    elif isinstance(kind, types.FloatParamType):
        expected, fits = "a number", number
    elif isinstance(kind, (types.StringParamType, types.Choice, types.Path, types.File)):
        expected, fits = "a string", isinstance(value, str)
    else:
        return _text(value)
    if not fits:
        raise _UnexpectedError(expected, value)
    return value


def _text(value: object) -> str:
    """Return what would stand on the command line, for an option with a type of its own."""
    elements = value if isinstance(value, list) else [value]
    if any(isinstance(element, bool) or not isinstance(element, (str, int, float)) for element in elements):
        raise _UnexpectedError("a string, a number or an array of them", value)
    return ",".join(map(str, elements))


def _described(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"an array of {len(value)}"
    if isinstance(value, dict):
        return "a table"
    named = {str: "the string", int: "the integer", float: "the number"}.get(type(value), "the date or time")
    return f"{named} {value!r}" if isinstance(value, str) else f"{named} {value}"
