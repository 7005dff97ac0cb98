"""Turn a trained VAE into a verified bundle.

    from pathlib import Path
    from edgevae.export import Source, export_bundle
    from edgevae.train import load_run

    run = load_run(Path("runs/digits-mlp"))
    source = Source("digits", run.vae, run.samples, "test images of digits", dataset=None)
    for report in export_bundle(source, Path("models/digits"), ["onnx", "torchscript"]):
        print(report)

On the command line: `vae-export --help`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import *  # noqa: F403 - what `api` lists


def __getattr__(name: str) -> Any:
    """Import the public names when one of them is first asked for, so that `python -m export` loads nothing twice."""
    if name == "api" or (name.startswith("_") and name != "__all__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(".api", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *__getattr__("__all__")]
