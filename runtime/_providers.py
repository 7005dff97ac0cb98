"""Which execution provider to run on: the one asked for, or an error that says what stands in its way.

ONNX Runtime itself only logs when a provider cannot be had, and runs on the CPU: what it lists as available says what
it was built with, and only a session's own `get_providers()` says what it runs on. A session may have a provider and
yet run nothing on it, because it knows none of the graph's operators: newer versions tell where each node runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, TypeAlias

from ._errors import BundleError, InputError, ProviderError
from ._onnxruntime import import_onnxruntime

ProviderOptions: TypeAlias = "str | tuple[str, Mapping[str, Any]]"
"""A provider by ONNX Runtime's own name, like `CUDAExecutionProvider`; with options, as ONNX Runtime takes them."""

_AUTO, _CPU, _CUDA = "auto", "cpu", "cuda"
_SUFFIX = "ExecutionProvider"
_SILENT, _WARNING = 4, 2  # ONNX Runtime's log severities: nothing but fatal errors; its default
_NEED_CUDA = (_CUDA, "tensorrt", "nvtensorrtrtx")
_RECORD_ASSIGNMENT = "session.record_ep_graph_assignment_info"
_SPIN_DURATION, _SPIN_US = "session.intra_op.spin_duration_us", "300"
"""How long a session's threads wait for work in a loop. By default they do so for 50 ms after each run, on the very
processor that the application, or the model's next graph, needs: `decode` after `encode` took twice as long."""
_INSTALL = {
    _CUDA: "pip uninstall onnxruntime, then pip install 'edgevae[gpu]' (package onnxruntime-gpu)",
    "tensorrt": "pip uninstall onnxruntime, then pip install onnxruntime-gpu, and NVIDIA's TensorRT",
    "openvino": "pip uninstall onnxruntime, then pip install onnxruntime-openvino",
    "dml": "pip uninstall onnxruntime, then pip install onnxruntime-directml (on Windows)",
    "qnn": "pip uninstall onnxruntime, then pip install onnxruntime-qnn",
    "coreml": "it comes with onnxruntime on macOS",
}
_BUILD = "it needs a build of ONNX Runtime that has it"


@dataclasses.dataclass(frozen=True)
class Execution:
    """Where and how sessions run.

    Args:
        providers: ONNX Runtime's names with their options, in the order of preference; `None` for CUDA where it truly
            works, else the CPU.
        threads: Threads inside one operator.
        session_options: An `onnxruntime.SessionOptions` in the place of our own; `threads` goes unread then.
    """

    providers: tuple[tuple[str, Mapping[str, Any]], ...] | None
    threads: int
    session_options: Any = None

    @classmethod
    def of(
        cls, provider: str, threads: int, providers: Sequence[ProviderOptions] | None, session_options: Any
    ) -> Execution:
        """Return the execution that a caller asks for.

        Args:
            provider: `auto`, or a provider's short name, like `cpu`.
            threads: Threads inside one operator.
            providers: Providers by ONNX Runtime's names, in the place of `provider`.
            session_options: An `onnxruntime.SessionOptions`, or `None`.

        Raises:
            InputError: A name is unknown, or both `provider` and `providers` choose.
            InstallError: ONNX Runtime is not installed.
        """
        onnxruntime = import_onnxruntime()
        if session_options is not None and not isinstance(session_options, onnxruntime.SessionOptions):
            got = type(session_options).__name__
            raise InputError(f"session_options must be an onnxruntime.SessionOptions, got {got}")
        known = {short_name(name): name for name in onnxruntime.get_all_providers()}
        if providers is None:
            if provider != _AUTO and provider not in known:
                others = ", ".join(sorted(known.keys() - {_CPU, _CUDA}))
                raise InputError(
                    f"provider must be auto, cpu, cuda, or another of ONNX Runtime's ({others}), got {provider!r}"
                )
            return cls(None if provider == _AUTO else ((known[provider], {}),), threads, session_options)
        if provider != _AUTO:
            raise InputError(f"provider {provider!r} and providers were both given; give one of them")
        if isinstance(providers, str) or len(providers) == 0:
            raise InputError(f"providers must be a list of at least one of ONNX Runtime's names, got {providers!r}")
        pairs = tuple((entry, {}) if isinstance(entry, str) else (entry[0], dict(entry[1])) for entry in providers)
        for name, _ in pairs:
            if name not in known.values():
                raise InputError(f"providers must be ONNX Runtime's, {', '.join(known.values())}; got {name!r}")
        return cls(pairs, threads, session_options)


def short_name(name: str) -> str:
    """Return our word for one of ONNX Runtime's providers: `cuda` for `CUDAExecutionProvider`."""
    return name.removesuffix(_SUFFIX).lower()


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
    for name in ("CUDAExecutionProvider", "CPUExecutionProvider"):
        single = dataclasses.replace(execution, providers=((name, {}),))
        with contextlib.suppress(ProviderError):
            return _checked_session(onnxruntime, graph, file, single), short_name(name)
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
    if provider == _CPU or not hasattr(session, "get_provider_graph_assignment_info"):
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


def _checked_session(onnxruntime: ModuleType, graph: bytes, file: str, execution: Execution) -> Any:
    """Make a session that has all providers that were asked for."""
    names = [name for name, _ in execution.providers or ()]
    for name in names:
        if (obstacle := _obstacle(onnxruntime, name)) is not None:
            raise _error(name, obstacle)
    try:
        session = _session(onnxruntime, graph, execution)
    except Exception as error:  # ONNX Runtime's exceptions have no common base but Exception
        if short_name(names[0]) != _CPU and _loads_on_cpu(onnxruntime, graph):
            raise _error(names[0], f"ONNX Runtime {onnxruntime.__version__} says: {error}") from error
        raise BundleError(f"ONNX Runtime {onnxruntime.__version__} cannot load {file}: {error}") from error
    for name, options in execution.providers or ():
        if name not in session.get_providers():
            missing = "the CUDA or cuDNN" if short_name(name) == _CUDA else "its"
            remedy = "; pip install 'onnxruntime-gpu[cuda,cudnn]' brings them" if short_name(name) == _CUDA else ""
            wanted = f", or its options {dict(options)} ask for what is not here" if options else ""
            raise _error(
                name,
                f"ONNX Runtime lists {name.removesuffix(_SUFFIX)} but could not load it: {missing} libraries are "
                f"missing, or of a version that it was not built for{wanted}{remedy}",
            )
    session.disable_fallback()
    return session


def _error(name: str, obstacle: str) -> ProviderError:
    return ProviderError(f"provider {short_name(name)!r} does not work here: {obstacle}; or choose provider='cpu'")


def _obstacle(onnxruntime: ModuleType, name: str) -> str | None:
    """What keeps a provider from working, as far as can be told without a session."""
    available = onnxruntime.get_available_providers()
    if name not in available:
        has = ", ".join(short_name(other) for other in available)
        remedy = _INSTALL.get(short_name(name), _BUILD)
        return f"the installed ONNX Runtime is built without {name.removesuffix(_SUFFIX)}, it has {has}; {remedy}"
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
        if any(short_name(name) != _CPU for name, _ in execution.providers or ()):
            options.add_session_config_entry(_RECORD_ASSIGNMENT, "1")
    pairs = execution.providers or ()
    with _quiet_loading(onnxruntime, [short_name(name) for name, _ in pairs]):
        return onnxruntime.InferenceSession(
            graph,
            options,
            providers=[name for name, _ in pairs],
            provider_options=[dict(provider_options) for _, provider_options in pairs],
        )


@contextlib.contextmanager
def _quiet_loading(onnxruntime: ModuleType, providers: Sequence[str]) -> Iterator[None]:
    """Load the CUDA libraries of pip packages, and keep ONNX Runtime from writing to the terminal meanwhile.

    Its default logger has no getter: afterwards it is back at ONNX Runtime's own default.
    """
    if set(providers) <= {_CPU}:
        yield
        return
    if not set(providers).isdisjoint(_NEED_CUDA) and hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()
    onnxruntime.set_default_logger_severity(_SILENT)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(_WARNING)


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
