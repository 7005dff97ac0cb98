"""The package `onnxruntime`, imported when it is first needed, with errors that say what to install."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from .errors import InstallError

INSTALL = "pip install 'edgevae[cpu]' (package onnxruntime) or, for CUDA, 'edgevae[gpu]' (package onnxruntime-gpu)"

WHEELS = {"onnxruntime"} | {
    f"onnxruntime-{kind}" for kind in ("gpu", "directml", "openvino", "qnn", "rocm", "migraphx", "training", "silicon")
}
"""All names under which ONNX Runtime is packaged; any two overwrite each other."""
_NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"
_OFF = {"", "0", "false", "no", "off"}
_KNOWN_VERSIONS = tuple(f"1.{minor}." for minor in range(20, 33))
_SHARED_THREADS_ONLY = "use_per_session_threads must be false"


@functools.cache
def import_onnxruntime() -> ModuleType:
    """Return the module `onnxruntime`; warn once if more than one of its wheels is installed.

    By itself it reports to Microsoft what runs where, names and hashes of models among it: on Windows, and from version
    1.29 on elsewhere too. That is turned off, for this process and those it starts, unless ORT_DISABLE_TELEMETRY=0 says
    otherwise. Where the application has imported it before, it has begun, and sends less from here on.

    Raises:
        InstallError: It is not installed, or cannot be loaded.
    """
    no_telemetry = os.environ.setdefault(_NO_TELEMETRY, "1").lower() not in _OFF
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
    if no_telemetry:
        onnxruntime.disable_telemetry_events()  # on Windows it does not look at the environment
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


def new_session(graph: bytes, options: Any, *, own: bool = True, **providers: Any) -> Any:
    """Return an `onnxruntime.InferenceSession` that runs on the providers it was made for, or fails.

    An application may have given all sessions of its process the same threads (`set_global_thread_pool_sizes`). ONNX
    Runtime allows no others then, and cannot be asked: these threads are taken where it refuses.

    Args:
        graph: The content of the `.onnx` file.
        options: An `onnxruntime.SessionOptions`.
        own: Whether the options are ours to change, not the caller's.
        providers: `providers` and `provider_options`, as ONNX Runtime takes them.
    """
    make = functools.partial(import_onnxruntime().InferenceSession, graph, options, **providers, enable_fallback=0)
    try:
        session = make()
    except RuntimeError as error:
        if not own or _SHARED_THREADS_ONLY not in str(error):
            raise
        options.use_per_session_threads = False
        options.intra_op_num_threads = 0  # else it warns that it does not look at the number
        session = make()
    session.disable_fallback()  # older versions do not take it from the argument
    return session


def run_of(session: Any) -> Callable[[list[str], Mapping[str, Any], None], list[Any]]:
    """Return `session.run`, or on the CPU what it calls, which takes the same arguments.

    On the way there it compares the inputs' names, as a manifest does once, and looks after tensors that are not
    NumPy's: 5 to 10 us of a call. What it calls has a private name, so that only versions are taken that were tried.

    Args:
        session: An `onnxruntime.InferenceSession`.
    """
    is_known = import_onnxruntime().__version__.startswith(_KNOWN_VERSIONS)
    is_on_cpu = session.get_providers() == ["CPUExecutionProvider"]
    runner = session._sess if is_known and is_on_cpu else session  # noqa: SLF001 - it has no public name
    run: Callable[[list[str], Mapping[str, Any], None], list[Any]] = runner.run
    return run


def installed_wheels(onnxruntime: ModuleType) -> list[str]:
    """Return the names of ONNX Runtime's wheels that are installed where it was imported from, sorted."""
    site_packages = os.path.dirname(os.path.dirname(onnxruntime.__file__ or ""))
    packages = (name for name in os.listdir(site_packages) if name.endswith(".dist-info"))
    return sorted(WHEELS & {name.partition("-")[0].replace("_", "-") for name in packages})
