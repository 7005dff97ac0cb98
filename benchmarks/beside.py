"""Another checkout of this project, to measure before and after in one run."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

_NAME = "edgevae_beside"
# Export the model that `Peers` exports. The packages are registered by hand: this Python has ours under the same names.
_EXPORT = """
import importlib.util, pathlib, sys, torch
checkout, out, architecture = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
one_package = "package-dir" in (checkout / "pyproject.toml").read_text(encoding="utf-8")
names = ("edgevae", "edgevae.train", "edgevae.export") if one_package else ("runtime", "train", "export")
packages = []
for name, folder in zip(names, ("runtime", "train", "export")):
    spec = importlib.util.spec_from_file_location(
        name, checkout / folder / "__init__.py", submodule_search_locations=[str(checkout / folder)])
    packages.append(importlib.util.module_from_spec(spec))
    sys.modules[name] = packages[-1]
    spec.loader.exec_module(packages[-1])
_, train, export = packages
torch.manual_seed(0)
vae = train.VAE(train.ModelConfig((1, 28, 28), architecture=architecture)).eval()
images = torch.rand(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
export.export_bundle(export.Source("beside", vae, images, "noise", None), out, ["onnx"])
"""


def load_runtime(checkout: Path) -> ModuleType:
    """Import the runtime of another checkout, under a name of its own.

    Args:
        checkout: A folder that holds `runtime/`.
    """
    folder = checkout / "runtime"
    spec = importlib.util.spec_from_file_location(
        _NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder} is not a package")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = module
    spec.loader.exec_module(module)
    return module


def export(checkout: Path, architecture: str, out: Path) -> None:
    """Export the untrained model that `Peers` exports, with another checkout's exporter.

    Args:
        checkout: A folder that holds `runtime/`, `train/`, `export/` and `pyproject.toml`.
        architecture: Architecture of the networks.
        out: The bundle's folder.
    """
    command = [sys.executable, "-W", "ignore", "-c", _EXPORT, str(checkout.absolute()), str(out), architecture]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - our own program
