"""Which execution provider to run on: the one asked for, or an error that says what stands in its way.

ONNX Runtime itself only logs when a provider cannot be had, and runs on the CPU: what it lists as available says what
it was built with, and only a session's own `get_providers()` says what it runs on. A session may have a provider and
yet run nothing on it, because it knows none of the graph's operators: newer versions tell where each node runs.
"""

from __future__ import annotations

import contextlib
import functools
import io
import sys
import threading
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from .errors import BundleError, ProviderError
from .execution import AUTO_CHOICES, CPU, CUDA, SUFFIX, Execution, short_name
from .ort import import_onnxruntime, new_session

_SILENT, _WARNING = 4, 2  # ONNX Runtime's log severities: nothing but fatal errors; its default
_NEED_CUDA = (CUDA, "tensorrt", "nvtensorrtrtx")
_RECORD_ASSIGNMENT = "session.record_ep_graph_assignment_info"
_SPIN_DURATION, _SPIN_US = "session.intra_op.spin_duration_us", "300"
"""How long a session's threads wait for work in a loop. By default they do so for 50 ms after each run, on the very
processor that the application, or the model's next graph, needs: `decode` after `encode` took twice as long."""
_INSTALL = {
    CUDA: "pip uninstall onnxruntime, then pip install 'edgevae[gpu]' (package onnxruntime-gpu)",
    "tensorrt": "pip uninstall onnxruntime, then pip install onnxruntime-gpu, and NVIDIA's TensorRT",
    "openvino": "pip uninstall onnxruntime, then pip install onnxruntime-openvino",
    "dml": "pip uninstall onnxruntime, then pip install onnxruntime-directml (on Windows)",
    "qnn": "pip uninstall onnxruntime, then pip install onnxruntime-qnn",
    "coreml": "it comes with onnxruntime on macOS",
}
_PRELOADING = threading.Lock()
_BUILD = "it needs a build of ONNX Runtime that has it"


def create_session(graph: bytes, file: str, execution: Execution) -> tuple[Any, str]:
    """Return an `onnxruntime.InferenceSession` of an ONNX graph, and the short name of the provider it truly runs on.

    Args:
        graph: The content of the `.onnx` file.
        file: Its name, for messages.
        execution: Where to run.

    Raises:
        BundleError: ONNX Runtime cannot load the graph.
        InstallError: ONNX Runtime is not installed.
        ProviderError: A provider that was asked for does not work here.
    """
    onnxruntime = import_onnxruntime()
    if execution.providers is not None:
        return _checked_session(onnxruntime, graph, file, execution), short_name(execution.providers[0][0])
    for provider in AUTO_CHOICES:
        with contextlib.suppress(ProviderError):
            return _checked_session(onnxruntime, graph, file, execution.on(provider)), provider
    raise ProviderError("this ONNX Runtime is built without CPUExecutionProvider")  # there is no such build


def check_runs(session: Any, provider: str, file: str) -> None:
    """Refuse a provider that a session has and that runs none of its graph's nodes, where ONNX Runtime tells.

    Args:
        session: An `onnxruntime.InferenceSession`.
        provider: Our word for the provider.
        file: The graph's file, for messages.

    Raises:
        ProviderError: No node runs on the provider.
    """
    if provider == CPU or not hasattr(session, "get_provider_graph_assignment_info"):
        return
    try:
        parts = session.get_provider_graph_assignment_info()
    except Exception:  # noqa: BLE001 - a caller's own session options may not record it; the exceptions have no base
        return
    if parts and all(short_name(part.ep_name) != provider for part in parts):
        raise ProviderError(
            f"provider {provider!r} runs nothing of {file}: it knows none of its operators, and all would run on the "
            "CPU; choose provider='cpu'"
        )


def has_own_threads(session: Any, execution: Execution) -> bool:
    """Whether a session has threads of its own, as many as we say: neither the application's nor of its options.

    Args:
        session: An `onnxruntime.InferenceSession`.
        execution: What it was made for.
    """
    options = session.get_session_options()
    return execution.session_options is None and getattr(options, "use_per_session_threads", True)


def _checked_session(onnxruntime: ModuleType, graph: bytes, file: str, execution: Execution) -> Any:
    """Make a session that has all providers that were asked for."""
    names = [name for name, _ in execution.providers or ()]
    for name in names:
        if (obstacle := _obstacle(onnxruntime, name)) is not None:
            raise _error(name, obstacle)
    try:
        session = _session(onnxruntime, graph, execution)
    except Exception as error:  # ONNX Runtime's exceptions have no common base but Exception
        if short_name(names[0]) != CPU and _loads_on_cpu(onnxruntime, graph):
            raise _error(names[0], f"ONNX Runtime {onnxruntime.__version__} says: {error}") from error
        raise BundleError(f"ONNX Runtime {onnxruntime.__version__} cannot load {file}: {error}") from error
    for name, options in execution.providers or ():
        if name not in session.get_providers():
            missing = "the CUDA or cuDNN" if short_name(name) == CUDA else "its"
            remedy = "; pip install 'onnxruntime-gpu[cuda,cudnn]' brings them" if short_name(name) == CUDA else ""
            wanted = f", or its options {dict(options)} ask for what is not here" if options else ""
            raise _error(
                name,
                f"ONNX Runtime lists {name.removesuffix(SUFFIX)} but could not load it: {missing} libraries are "
                f"missing, or of a version that it was not built for{wanted}{remedy}",
            )
    return session


def _error(name: str, obstacle: str) -> ProviderError:
    return ProviderError(f"provider {short_name(name)!r} does not work here: {obstacle}; or choose provider='cpu'")


def _obstacle(onnxruntime: ModuleType, name: str) -> str | None:
    """What keeps a provider from working, as far as can be told without a session."""
    available = onnxruntime.get_available_providers()
    if name not in available:
        has = ", ".join(short_name(other) for other in available)
        remedy = _INSTALL.get(short_name(name), _BUILD)
        return f"the installed ONNX Runtime is built without {name.removesuffix(SUFFIX)}, it has {has}; {remedy}"
    if short_name(name) in _NEED_CUDA and _cuda_device_count() == 0:
        return "there is no CUDA device, or NVIDIA's driver is not installed"
    return None


def _loads_on_cpu(onnxruntime: ModuleType, graph: bytes) -> bool:
    with contextlib.suppress(Exception):
        _session(onnxruntime, graph, Execution((("CPUExecutionProvider", {}),), 1))
        return True
    return False


def _session(onnxruntime: ModuleType, graph: bytes, execution: Execution) -> Any:
    options = execution.session_options
    if options is None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = execution.threads
        options.log_severity_level = _SILENT  # what goes wrong is raised, not logged
        options.add_session_config_entry(_SPIN_DURATION, _SPIN_US)
        if any(short_name(name) != CPU for name, _ in execution.providers or ()):
            options.add_session_config_entry(_RECORD_ASSIGNMENT, "1")
    pairs = execution.providers or ()
    with _quiet_loading(onnxruntime, [short_name(name) for name, _ in pairs]):
        return new_session(
            graph,
            options,
            own=execution.session_options is None,
            providers=[name for name, _ in pairs],
            provider_options=[dict(provider_options) for _, provider_options in pairs],
        )


@contextlib.contextmanager
def _quiet_loading(onnxruntime: ModuleType, providers: Sequence[str]) -> Iterator[None]:
    """Load the CUDA libraries of pip packages, and keep ONNX Runtime from writing to the terminal meanwhile.

    Its default logger has no getter: afterwards it is back at ONNX Runtime's own default.
    """
    if set(providers) <= {CPU}:
        yield
        return
    if not set(providers).isdisjoint(_NEED_CUDA) and hasattr(onnxruntime, "preload_dlls"):
        with _PRELOADING, contextlib.redirect_stdout(io.StringIO()):  # which is the whole process's
            _preload(onnxruntime)
    onnxruntime.set_default_logger_severity(_SILENT)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(_WARNING)


@functools.cache
def _preload(onnxruntime: ModuleType) -> None:
    onnxruntime.preload_dlls()


@functools.cache
def _cuda_device_count() -> int:
    """Number of CUDA devices that NVIDIA's driver sees; 0 without a driver."""
    import ctypes

    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        devices = ctypes.c_int(0)
        if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(devices)) != 0:
            return 0
    except (OSError, AttributeError):
        return 0
    return devices.value
