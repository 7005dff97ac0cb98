"""A check for the packages that training needs, with one message in place of a failed import deep inside."""

from __future__ import annotations

import importlib.util


def require(*packages: str) -> None:
    """Check that packages can be imported.

    Raises:
        ModuleNotFoundError: One cannot; the message names all that are missing, and what to install.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"training and export need {', '.join(missing)}; pip install 'edgevae[export]' "
            "(to run a bundle, import edgevae: it needs none of them)"
        )


require("torch", "pyro", "torchvision", "sklearn", "safetensors", "matplotlib", "rich", "jinja2")
