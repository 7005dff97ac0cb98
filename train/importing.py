"""Import modules and files of users: networks and programs."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from .errors import ConfigError


def import_module(name: str, who: str) -> ModuleType:
    """Import a module from Python's path or from the working directory, which is appended to the path if needed.

    Args:
        name: Its name.
        who: What needs it, for the error.

    Raises:
        ConfigError: There is no such module.
    """
    folder = str(Path.cwd())
    for attempt in (1, 2):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module exists, and imports one that does not
            if attempt == 2 or folder in sys.path:
                if attempt == 2:
                    sys.path.remove(folder)
                raise ConfigError(
                    f"{who} needs the module {name}, and Python finds no {error.name}, neither "
                    f"in {folder} nor on its path; run the command in the folder that holds it, or set "
                    "PYTHONPATH=FOLDER"
                ) from error
        sys.path.append(folder)  # last, so that it hides no installed module
    raise AssertionError


def import_file(path: Path, what: str, remedy: str, *, anew: bool = False) -> ModuleType:
    """Import a file, as a module whose name nothing else has; modules beside it can be imported too.

    Args:
        path: The file.
        what: What is in it, for the error, like `networks`.
        remedy: What to do where it is not there.
        anew: Whether to run a file again that was imported before, so that nothing it made then is shared.

    Raises:
        ConfigError: The file is not there.
    """
    path = path.resolve()
    name = f"{path.stem}@{path}"
    if name in sys.modules and not anew:
        return sys.modules[name]
    if not path.is_file():
        raise ConfigError(f"the file {path} with the {what} is not there; {remedy}")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise AssertionError
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # last, so that it hides no installed module
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
