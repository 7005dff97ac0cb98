"""Fit a Pyro VAE with SVI.

    from pathlib import Path
    from edgevae.train import TrainingConfig, fit, load_dataset, model_for

    dataset, training = load_dataset("digits"), TrainingConfig(epochs=30, batch_size=64, seed=0)
    run = fit(dataset, Path("runs/digits"), model_for(dataset, training, z_dim=10), training)
    test = run.evaluations["test"]
    print(test.elbo_nats, test.active_units)  # nats an image; latent dimensions that carry information

`Trainer` fits an epoch at a time, for a loop of your own.

On the command line: `python -m train --help`.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import *  # noqa: F403 - what `api` lists


def require(*packages: str) -> None:
    """Check that packages can be imported, without importing them.

    Raises:
        ModuleNotFoundError: The message names all that are missing, and what to install.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"training and export need {', '.join(missing)}; pip install 'edgevae[export]' "
            "(to run a bundle, import edgevae: it needs none of them)"
        )


require("torch", "pyro", "torchvision", "sklearn", "safetensors", "matplotlib", "rich", "jinja2")


def __getattr__(name: str) -> Any:
    """Import the public names on first use, so that `python -m train` loads nothing twice."""
    if name == "api" or (name.startswith("_") and name != "__all__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(".api", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *__getattr__("__all__")]
