"""What this machine can run: versions, wheels, providers that were tried, and what to fix."""

from __future__ import annotations

import base64
import importlib.metadata
import os
import platform
import warnings

import msgspec
import numpy as np

from . import __version__
from .errors import EdgeVAEError, InstallError
from .providers import (
    INSTALL,
    WHEELS,
    Execution,
    check_runs,
    create_session,
    import_onnxruntime,
    short_name,
    usable_cpus,
)

_PACKAGES = ("numpy", "msgspec", "click", "pillow")
PROBE = base64.b64decode(  # an ONNX graph, z = Relu(x I) with x of shape (1, 2): small, and known to every provider
    "CAgSADpvChEKAXgKAXcSAWgiBk1hdE11bAoMCgFoEgF6IgRSZWx1EgVwcm9iZSobCAIIAhABQgF3ShAAAIA/AAAAAAAAAAAAAIA/WhMKAXgS"
    "DgoMCAESCAoCCAEKAggCYhMKAXoSDgoMCAESCAoCCAEKAggCQgQKABAS"
)
PROBE_INPUT = np.array([[-1, 2]], np.float32)


class ProviderCheck(msgspec.Struct, frozen=True):
    """An execution provider, tried with a small graph.

    Args:
        name: Its short name, as `load` takes it.
        works: Whether a session ran on it, and gave the right numbers.
        obstacle: Why it does not work; empty if it does.
    """

    name: str
    works: bool
    obstacle: str


class Diagnosis(msgspec.Struct, frozen=True):
    """What was found.

    Args:
        system: Python and the machine, in words.
        versions: Of the packages that the runtime uses, by name; those that are installed.
        wheels: ONNX Runtime's packages that are installed, with their versions.
        providers: Those that this ONNX Runtime is built with, and CUDA.
        threads: Threads that a model uses by default: the CPUs that affinity and the container's quota allow.
        cpus: CPUs of the machine.
        problems: What to fix, and what to install for it.
    """

    system: str
    versions: dict[str, str]
    wheels: dict[str, str]
    providers: tuple[ProviderCheck, ...]
    threads: int
    cpus: int
    problems: tuple[str, ...]


def diagnose() -> Diagnosis:
    """Examine this machine, and try each provider."""
    wheels = {name: version for name in sorted(WHEELS) if (version := _version(name)) is not None}
    providers: tuple[ProviderCheck, ...] = ()
    problems = []
    if len(wheels) > 1:
        names = " ".join(wheels)
        problems.append(f"{' and '.join(wheels)} overwrite each other; pip uninstall {names}, then {INSTALL}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # several wheels are told of above
            available = import_onnxruntime().get_available_providers()
        providers = tuple(_try(name) for name in dict.fromkeys([*map(short_name, available), "cuda"]))
    except InstallError as error:
        problems.append(str(error))
    problems += [f"{check.name}: {check.obstacle}" for check in providers if check.name == "cpu" and not check.works]
    found = {name: version for name in _PACKAGES if (version := _version(name)) is not None}
    versions = {"edgevae": __version__, **found}
    if "pillow" not in versions:
        problems.append("pictures need Pillow; pip install pillow")
    system = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    return Diagnosis(system, versions, wheels, providers, usable_cpus(), os.cpu_count() or 1, tuple(problems))


def _try(name: str) -> ProviderCheck:
    """Run the probe on a provider."""
    try:
        session, _ = create_session(PROBE, "a graph to try", Execution.of(name, 1, None, None))
        check_runs(session, name, "a graph to try")
        (found,) = session.run(None, {"x": PROBE_INPUT})
    except EdgeVAEError as error:
        told = (
            str(error)
            .removeprefix(f"provider {name!r} does not work here: ")
            .removesuffix("; or choose provider='cpu'")
        )
        return ProviderCheck(name, False, told)
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions have no common base, and each is an answer
        return ProviderCheck(name, False, f"it fails: {error}")
    right = np.allclose(found, np.maximum(PROBE_INPUT, 0))
    return ProviderCheck(name, right, "" if right else f"it computes wrong numbers: {found.tolist()}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
