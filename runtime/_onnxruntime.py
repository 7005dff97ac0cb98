"""The package `onnxruntime`, imported when it is first needed, with errors that say what to install."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from types import ModuleType

from ._errors import InstallError

INSTALL = "pip install 'edgevae[cpu]' (package onnxruntime) or, for CUDA, 'edgevae[gpu]' (package onnxruntime-gpu)"

WHEELS = {"onnxruntime"} | {
    f"onnxruntime-{kind}" for kind in ("gpu", "directml", "openvino", "qnn", "rocm", "migraphx", "training", "silicon")
}
"""All names under which ONNX Runtime is packaged; any two overwrite each other."""


@functools.cache
def import_onnxruntime() -> ModuleType:
    """Return the module `onnxruntime`; warn once if more than one of its wheels is installed.

    Raises:
        InstallError: It is not installed, or cannot be loaded.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        if error.name == "onnxruntime":
            raise InstallError(f"ONNX Runtime is not installed; {INSTALL}") from error
        raise InstallError(f"ONNX Runtime needs {error.name}, which is not installed; {INSTALL}") from error
    except ImportError as error:
        raise InstallError(f"ONNX Runtime is installed but cannot be loaded: {error}") from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise InstallError(f"ONNX Runtime's installation is broken; remove all packages onnxruntime*, then {INSTALL}")
    module: ModuleType = onnxruntime
    wheels = installed_wheels(module)
    if len(wheels) > 1:
        warnings.warn(
            f"{' and '.join(wheels)} are both installed and overwrite each other; "
            f"pip uninstall {' '.join(wheels)}, then {INSTALL}",
            RuntimeWarning,
            stacklevel=2,
        )
    return module


def installed_wheels(onnxruntime: ModuleType) -> list[str]:
    """Return the names of ONNX Runtime's wheels that are installed where it was imported from, sorted."""
    site_packages = Path(onnxruntime.__file__ or "").parent.parent
    names = {path.name.partition("-")[0].replace("_", "-") for path in site_packages.glob("onnxruntime*-*.dist-info")}
    return sorted(names & WHEELS)
