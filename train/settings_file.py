"""Settings in a TOML file, read and written.

Their names are an option's without its dashes, with `-` or `_` within it. The tables `[data]`, `[model]` and
`[training]` are there for the reader: any setting may stand in any of them, or in none.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import click

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TABLES = ("data", "model", "training")


def read_settings(path: Path) -> dict[str, object]:
    """Return the settings in a TOML file: values by name, with `_` for `-`, tables opened, arrays as tuples.

    Raises:
        click.BadParameter: The file cannot be read or is no TOML (the message says where), has a table that is none of
            `TABLES`, or sets a name twice.
    """
    return {name: _frozen(value) for name, (_, value) in read_keys(path).items()}


def read_keys(path: Path) -> dict[str, tuple[str, Any]]:
    """Return what `read_settings` does, with each value the key as the file has it, and arrays as lists."""
    try:
        content = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        refuse(path, f"the file cannot be read: {error.strerror or error}")
    except UnicodeDecodeError as error:
        refuse(path, f"the file is not in UTF-8: {error.reason} at byte {error.start}")
    except tomllib.TOMLDecodeError as error:
        refuse(path, f"the file is no TOML: {error}")
    settings: dict[str, tuple[str, Any]] = {}
    for written, key, value in _opened(path, content):
        name = key.replace("-", "_")
        if name in settings:
            refuse(path, f"{settings[name][0]} and {written} are the same option; keep one")
        settings[name] = (written, value)
    return settings


def dump_settings(values: Mapping[str, object]) -> str:
    """Return the settings as TOML from which `read_settings` makes them again.

    Args:
        values: By name: strings, numbers, booleans, paths (written as strings), tuples and lists of them, or `None`,
            which is left out.

    Raises:
        ValueError: A value is of another type, or text that UTF-8 cannot express; or a name is none.
    """
    lines = []
    for name, value in values.items():
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise ValueError(f"a setting's name must be of letters, digits, - and _, got {name!r}")
        if value is not None:
            lines.append(f"{name.replace('_', '-')} = {_toml(name, value)}\n")
    return "".join(lines)


def refuse(path: Path, what: str) -> NoReturn:
    """Raise `click.BadParameter`, saying what is wrong with the file."""
    raise click.BadParameter(f"{path}: {what}", param_hint="--config")


def _opened(path: Path, content: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """Return each setting's key with its table, its key, and its value."""
    entries: list[tuple[str, str, Any]] = []
    for key, value in content.items():
        if not isinstance(value, dict):
            entries.append((key, key, value))
        elif key in TABLES:
            entries += [(f"{key}.{inner}", inner, setting) for inner, setting in value.items()]
        else:
            refuse(path, f"there is no table [{key}]; the tables are {', '.join(f'[{name}]' for name in TABLES)}")
    return entries


def _toml(name: str, value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return float.__repr__(value)
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_toml(name, element) for element in value)}]"
    if isinstance(value, (str, os.PathLike)):
        text = os.fspath(value)
        if isinstance(text, str) and not re.search("[\ud800-\udfff]", text):
            # JSON's strings are TOML's, but for DEL.
            return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
    raise ValueError(f"{name} must be a string, a number, a boolean, a path or a list of them in UTF-8, got {value!r}")


def _frozen(value: object) -> object:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
