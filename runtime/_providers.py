"""Which execution provider to run on: the one asked for, or an error that says what stands in its way.

ONNX Runtime itself only logs when a provider cannot be had, and runs on the CPU: what it lists as available says what
it was built with, and only a session's own `get_providers()` says what it runs on.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

from ._errors import BundleError, InputError, InstallError, ProviderError

ProviderChoice = Literal["auto", "cpu", "cuda"]
Provider = Literal["cpu", "cuda"]

_ONNX_RUNTIME_NAME = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_SILENT, _WARNING = 4, 2  # ONNX Runtime's log severities: nothing but fatal errors; its default
_WHEELS = {"onnxruntime"} | {
    f"onnxruntime-{kind}" for kind in ("gpu", "directml", "openvino", "qnn", "rocm", "migraphx", "training", "silicon")
}
_INSTALL = "pip install 'edgevae[cpu]' (package onnxruntime) or, for CUDA, 'edgevae[gpu]' (package onnxruntime-gpu)"


def check_choice(provider: str) -> None:
    """Raise `InputError` if `provider` is none that can be chosen."""
    if provider not in get_args(ProviderChoice):
        raise InputError(f"provider must be one of {', '.join(get_args(ProviderChoice))}, got {provider!r}")


def create_session(graph: bytes, file: str, provider: ProviderChoice, threads: int) -> tuple[Any, Provider]:
    """Return an `onnxruntime.InferenceSession` of an ONNX graph, and the provider that it truly runs on.

    Args:
        graph: The content of the `.onnx` file.
        file: Its name, for messages.
        provider: `auto` takes CUDA where it works, else the CPU.
        threads: Threads inside one operator.

    Raises:
        BundleError: ONNX Runtime cannot load the graph.
        InstallError: ONNX Runtime is not installed.
        ProviderError: `provider` is `cuda`, and CUDA does not work here.
    """
    onnxruntime = import_onnxruntime()
    if provider == "cpu":
        return _session(onnxruntime, graph, file, "cpu", threads), "cpu"
    obstacle = _cuda_obstacle(onnxruntime)
    if obstacle is None:
        session = _session(onnxruntime, graph, file, "cuda", threads)
        if _ONNX_RUNTIME_NAME["cuda"] in session.get_providers():
            return session, "cuda"
        obstacle = (
            "ONNX Runtime lists CUDA but could not load it: the CUDA or cuDNN libraries are missing, or of a version "
            "that it was not built for; pip install 'onnxruntime-gpu[cuda,cudnn]' brings them"
        )
    if provider == "cuda":
        raise ProviderError(f"provider 'cuda' does not work here: {obstacle}; or choose provider='cpu'")
    return _session(onnxruntime, graph, file, "cpu", threads), "cpu"


@functools.cache
def import_onnxruntime() -> ModuleType:
    """Return the module `onnxruntime`; warn once if more than one of its wheels is installed.

    Raises:
        InstallError: It is not installed.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        if error.name == "onnxruntime":
            raise InstallError(f"ONNX Runtime is not installed; {_INSTALL}") from error
        raise InstallError(f"ONNX Runtime needs {error.name}, which is not installed; {_INSTALL}") from error
    except ImportError as error:
        raise InstallError(f"ONNX Runtime is installed but cannot be loaded: {error}") from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise InstallError(f"ONNX Runtime's installation is broken; remove all packages onnxruntime*, then {_INSTALL}")
    wheels = _installed_wheels(Path(onnxruntime.__file__ or "").parent.parent)
    if len(wheels) > 1:
        warnings.warn(
            f"{' and '.join(wheels)} are both installed and overwrite each other; "
            f"pip uninstall {' '.join(wheels)}, then {_INSTALL}",
            RuntimeWarning,
            stacklevel=2,
        )
    module: ModuleType = onnxruntime
    return module


def _installed_wheels(site_packages: Path) -> list[str]:
    names = {path.name.partition("-")[0].replace("_", "-") for path in site_packages.glob("onnxruntime*-*.dist-info")}
    return sorted(names & _WHEELS)


def _session(onnxruntime: ModuleType, graph: bytes, file: str, provider: Provider, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _SILENT  # what goes wrong is raised, not logged
    with _quiet_cuda_loading(onnxruntime) if provider == "cuda" else contextlib.nullcontext():
        try:
            session = onnxruntime.InferenceSession(graph, options, providers=[_ONNX_RUNTIME_NAME[provider]])
        except Exception as error:  # ONNX Runtime's exceptions have no common base but Exception
            raise BundleError(f"ONNX Runtime {onnxruntime.__version__} cannot load {file}: {error}") from error
    session.disable_fallback()
    return session


@contextlib.contextmanager
def _quiet_cuda_loading(onnxruntime: ModuleType) -> Iterator[None]:
    """Load the CUDA libraries of pip packages, and keep ONNX Runtime from writing to the terminal meanwhile.

    Its default logger has no getter: afterwards it is back at ONNX Runtime's own default.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
    onnxruntime.set_default_logger_severity(_SILENT)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(_WARNING)


def _cuda_obstacle(onnxruntime: ModuleType) -> str | None:
    """What keeps CUDA from working, as far as can be told without a session."""
    if _ONNX_RUNTIME_NAME["cuda"] not in onnxruntime.get_available_providers():
        return (
            "the installed ONNX Runtime is built without CUDA; "
            "pip uninstall onnxruntime, then pip install 'edgevae[gpu]' (package onnxruntime-gpu)"
        )
    if _cuda_device_count() == 0:
        return "there is no CUDA device, or NVIDIA's driver is not installed"
    return None


@functools.cache
def _cuda_device_count() -> int:
    """Number of CUDA devices that NVIDIA's driver sees; 0 without a driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        devices = ctypes.c_int(0)
        if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(devices)) != 0:
            return 0
    except (OSError, AttributeError):
        return 0
    return devices.value
