"""ONNX Runtime: its import, its wheels, and the execution providers and threads that sessions run on.

If a provider does not work, ONNX Runtime only logs it, and falls back to the CPU. The providers that it lists as
available are those that it was built with; a session's own `get_providers()` says which were loaded. A session can
have a provider and run no node on it; newer versions report where each node runs.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import os
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import msgspec

from .errors import BundleError, InputError, InstallError, ProviderError
from .inputs import count

INSTALL = "pip install 'edgevae[cpu]' (package onnxruntime) or, for CUDA, 'edgevae[gpu]' (package onnxruntime-gpu)"

WHEELS = {"onnxruntime"} | {
    f"onnxruntime-{kind}" for kind in ("gpu", "directml", "openvino", "qnn", "rocm", "migraphx", "training", "silicon")
}
"""All names under which ONNX Runtime is packaged; any two overwrite each other."""

ProviderOptions: TypeAlias = "str | tuple[str, Mapping[str, Any]]"
"""A provider by ONNX Runtime's own name, like `CUDAExecutionProvider`; with options, as ONNX Runtime takes them."""

CPU, CUDA = "cpu", "cuda"

_SUFFIX = "ExecutionProvider"
_AUTO = "auto"
_AUTO_CHOICES = {CUDA: "CUDAExecutionProvider", CPU: "CPUExecutionProvider"}
"""What `auto` tries, in this order."""
_NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"
_OFF = {"", "0", "false", "no", "off"}
_SHARED_THREADS_ONLY = "use_per_session_threads must be false"
_LOG_FATAL, _LOG_WARNING = 4, 2  # ONNX Runtime's log severities; 2 is its default
_NEED_CUDA = (CUDA, "tensorrt", "nvtensorrtrtx")
_RECORD_ASSIGNMENT = "session.record_ep_graph_assignment_info"
_SPIN_DURATION, _SPIN_US = "session.intra_op.spin_duration_us", "300"
"""How long a session's idle threads spin. ONNX Runtime's default is much longer, and takes the cores away from the
application and from the model's next graph."""
_INSTALL_PROVIDER = {
    CUDA: "pip uninstall onnxruntime, then pip install 'edgevae[gpu]' (package onnxruntime-gpu)",
    "tensorrt": "pip uninstall onnxruntime, then pip install onnxruntime-gpu, and NVIDIA's TensorRT",
    "openvino": "pip uninstall onnxruntime, then pip install onnxruntime-openvino",
    "dml": "pip uninstall onnxruntime, then pip install onnxruntime-directml (on Windows)",
    "qnn": "pip uninstall onnxruntime, then pip install onnxruntime-qnn",
    "coreml": "it comes with onnxruntime on macOS",
}
_BUILD = "it needs a build of ONNX Runtime that has it"
_PRELOADING = threading.Lock()
_CGROUPS = "/sys/fs/cgroup"
_OWN_CGROUPS = "/proc/self/cgroup"
_MAX_THREADS = 1024


@functools.cache
def import_onnxruntime() -> ModuleType:
    """Return the module `onnxruntime`; warn once if more than one of its wheels is installed.

    ONNX Runtime sends telemetry to Microsoft, names and hashes of models included: on Windows, and from version 1.29 on
    elsewhere too. This turns it off for this process and its children, unless ORT_DISABLE_TELEMETRY=0 is set. Where the
    application imported ONNX Runtime before, telemetry has begun, and is only reduced.

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


def installed_wheels(onnxruntime: ModuleType) -> list[str]:
    """Return the names of ONNX Runtime's wheels that are installed where it was imported from, sorted."""
    site_packages = Path(onnxruntime.__file__ or "").parent.parent
    packages = (path.name for path in site_packages.iterdir() if path.suffix == ".dist-info")
    return sorted(WHEELS & {name.partition("-")[0].replace("_", "-") for name in packages})


class Execution(msgspec.Struct, frozen=True):
    """Where and how sessions run.

    Args:
        providers: ONNX Runtime's names with their options, in order of preference; `None` for CUDA if it works here,
            else the CPU.
        threads: Threads of a call.
        session_options: An `onnxruntime.SessionOptions` instead of our own; `threads` is not used then.
    """

    providers: tuple[tuple[str, Mapping[str, Any]], ...] | None
    threads: int
    session_options: Any = None

    @classmethod
    def of(
        cls, provider: str, threads: int | None, providers: Sequence[ProviderOptions] | None, session_options: Any
    ) -> Execution:
        """Check what a caller asks for.

        Args:
            provider: `auto`, or a provider's short name, like `cpu`.
            threads: Threads of a call; by default the CPUs that this process may use.
            providers: Providers by ONNX Runtime's names, in the place of `provider`.
            session_options: An `onnxruntime.SessionOptions`, or `None`.

        Raises:
            InputError: An argument is out of range or unknown, or two of them contradict each other.
            InstallError: ONNX Runtime is not installed.
        """
        threads = _checked_threads(threads, session_options)
        onnxruntime = import_onnxruntime()
        if session_options is not None and not isinstance(session_options, onnxruntime.SessionOptions):
            got = type(session_options).__name__
            raise InputError(f"session_options must be an onnxruntime.SessionOptions, got {got}")
        if not isinstance(provider, str):
            raise InputError(
                f"provider must be a name like cpu or cuda, got {type(provider).__name__}; ONNX Runtime's own names "
                "are given as providers"
            )
        known = {short_name(name): name for name in onnxruntime.get_all_providers()}
        if providers is None:
            if provider != _AUTO and provider not in known:
                others = ", ".join(sorted(known.keys() - {CPU, CUDA}))
                raise InputError(
                    f"provider must be auto, cpu, cuda, or another of ONNX Runtime's ({others}), got {provider!r}"
                )
            return cls(None if provider == _AUTO else ((known[provider], {}),), threads, session_options)
        if provider != _AUTO:
            raise InputError(f"provider {provider!r} and providers were both given; give one of them")
        if not isinstance(providers, (list, tuple)) or len(providers) == 0:
            raise InputError(f"providers must be a list of at least one of ONNX Runtime's names, got {providers!r}")
        pairs = tuple(map(_with_options, providers))
        for name, _ in pairs:
            if name not in known.values():
                raise InputError(f"providers must be ONNX Runtime's, {', '.join(known.values())}; got {name!r}")
        return cls(pairs, threads, session_options)

    def on(self, provider: str) -> Execution:
        """Return the same on a provider that was chosen, if the caller asked for none."""
        if self.providers is not None:
            return self
        return msgspec.structs.replace(self, providers=((_AUTO_CHOICES[provider], {}),))


def short_name(name: str) -> str:
    """Return the short name of one of ONNX Runtime's providers: `cuda` for `CUDAExecutionProvider`."""
    return name.removesuffix(_SUFFIX).lower()


def _with_options(entry: ProviderOptions) -> tuple[str, Mapping[str, Any]]:
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, (list, tuple)) and len(entry) == 2 and isinstance(entry[1], Mapping):
        return entry[0], dict(entry[1])
    raise InputError(f"providers must be names, or pairs of a name and a dict of its options, got {entry!r}")


def create_session(graph: bytes, file: str, execution: Execution) -> tuple[Any, str]:
    """Return an `onnxruntime.InferenceSession` of an ONNX graph, and the short name of the provider that runs it.

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
    for provider in _AUTO_CHOICES:
        with contextlib.suppress(ProviderError):
            return _checked_session(onnxruntime, graph, file, execution.on(provider)), provider
    raise ProviderError("this ONNX Runtime is built without CPUExecutionProvider")  # there is no such build


def check_runs(session: Any, provider: str, file: str) -> None:
    """Refuse a provider that runs none of a graph's nodes, if ONNX Runtime reports where they run.

    Args:
        session: An `onnxruntime.InferenceSession`.
        provider: The provider's short name.
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
    """Return whether a session has its own threads, as many as we asked for.

    Other sessions share the application's threads, or have as many as the caller's session options say.

    Args:
        session: An `onnxruntime.InferenceSession`.
        execution: What it was made for.
    """
    options = session.get_session_options()
    return execution.session_options is None and getattr(options, "use_per_session_threads", True)


def new_session(graph: bytes, options: Any, *, own: bool = True, **providers: Any) -> Any:
    """Return an `onnxruntime.InferenceSession` that runs on the providers it was made for, or fails.

    If the application made one thread pool for all sessions (`set_global_thread_pool_sizes`), ONNX Runtime refuses
    sessions with their own threads, and there is no way to ask beforehand. The shared threads are used then.

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
        options.intra_op_num_threads = 0  # else ONNX Runtime warns that it ignores the number
        session = make()
    session.disable_fallback()  # older versions do not take it from the argument
    return session


def _checked_threads(threads: int | None, session_options: Any) -> int:
    if threads is None:
        return usable_cpus()
    if session_options is not None:
        raise InputError("threads and session_options were both given; set session_options.intra_op_num_threads")
    threads = count("threads", threads)
    if not 1 <= threads <= _MAX_THREADS:
        raise InputError(f"threads must be from 1 to {_MAX_THREADS}, got {threads}; leave it out to use all CPUs")
    return threads


def usable_cpus(cgroups: str = _CGROUPS, own_cgroups: str = _OWN_CGROUPS) -> int:
    """Return the number of CPUs that affinity and the container's quota allow this process, at least 1.

    Args:
        cgroups: Where Linux mounts the control groups.
        own_cgroups: The file that lists those of this process.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _cgroup_folders(Path(cgroups), Path(own_cgroups)) if (quota := _quota(folder))]
    return max(1, min([affinity, *map(math.ceil, quotas)]))


def _cgroup_folders(cgroups: Path, own_cgroups: Path) -> list[Path]:
    """Return the folders of the process's control groups and their parents, of cgroups version 1 and 2."""
    try:
        lines = own_cgroups.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    folders = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = cgroups / "cpu" if controllers else cgroups
        names = path.strip("/").split("/")
        folders += [root.joinpath(*names[:depth]) for depth in range(len(names), -1, -1)]
    return folders


def _quota(folder: Path) -> float | None:
    """Return how many CPUs' worth of time a control group allows; `None` for no limit."""
    try:
        if (both := folder / "cpu.max").is_file():
            quota, period = both.read_text(encoding="utf-8").split()
        else:
            quota, period = (
                (folder / f"cpu.cfs_{name}_us").read_text(encoding="utf-8") for name in ("quota", "period")
            )
        return None if quota.strip() in {"max", "-1"} else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _checked_session(onnxruntime: ModuleType, graph: bytes, file: str, execution: Execution) -> Any:
    """Make a session that has all providers that were asked for."""
    names = [name for name, _ in execution.providers or ()]
    for name in names:
        if (obstacle := obstacle_of(onnxruntime, name)) is not None:
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
                f"ONNX Runtime lists {name.removesuffix(_SUFFIX)} but could not load it: {missing} libraries are "
                f"missing, or of a version that it was not built for{wanted}{remedy}",
            )
    return session


def _error(name: str, obstacle: str) -> ProviderError:
    return ProviderError(f"provider {short_name(name)!r} does not work here: {obstacle}; or choose provider='cpu'")


def obstacle_of(onnxruntime: ModuleType, name: str) -> str | None:
    """Return why a provider cannot work, as far as that is known without a session; `None` if nothing is known."""
    available = onnxruntime.get_available_providers()
    if name not in available:
        has = ", ".join(short_name(other) for other in available)
        remedy = _INSTALL_PROVIDER.get(short_name(name), _BUILD)
        return f"the installed ONNX Runtime is built without {name.removesuffix(_SUFFIX)}, it has {has}; {remedy}"
    if short_name(name) in _NEED_CUDA and cuda_device_count() == 0:
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
        options.log_severity_level = _LOG_FATAL  # errors are raised, not logged
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
    """Load the CUDA libraries of pip packages, and silence ONNX Runtime's logger in the block.

    The logger's level cannot be read, so it is set to ONNX Runtime's default afterwards.
    """
    if set(providers) <= {CPU}:
        yield
        return
    if not set(providers).isdisjoint(_NEED_CUDA) and hasattr(onnxruntime, "preload_dlls"):
        with _PRELOADING, contextlib.redirect_stdout(io.StringIO()):  # the lock, because stdout is the process's
            _preload(onnxruntime)
    onnxruntime.set_default_logger_severity(_LOG_FATAL)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(_LOG_WARNING)


@functools.cache
def _preload(onnxruntime: ModuleType) -> None:
    onnxruntime.preload_dlls()


@functools.cache
def cuda_device_count() -> int:
    """Return the number of CUDA devices that NVIDIA's driver sees; 0 without a driver."""
    import ctypes

    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        devices = ctypes.c_int(0)
        if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(devices)) != 0:
            return 0
    except (OSError, AttributeError):
        return 0
    return devices.value
