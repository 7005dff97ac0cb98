"""Where and how sessions run, as a caller asks for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from .errors import InputError
from .ort import import_onnxruntime

ProviderOptions: TypeAlias = "str | tuple[str, Mapping[str, Any]]"
"""A provider by ONNX Runtime's own name, like `CUDAExecutionProvider`; with options, as ONNX Runtime takes them."""

CPU, CUDA = "cpu", "cuda"
SUFFIX = "ExecutionProvider"
AUTO_CHOICES = {CUDA: "CUDAExecutionProvider", CPU: "CPUExecutionProvider"}
"""What `auto` takes, the first of them that works."""
_AUTO = "auto"


class Execution(msgspec.Struct, frozen=True):
    """Where and how sessions run.

    Args:
        providers: ONNX Runtime's names with their options, in the order of preference; `None` for CUDA where it truly
            works, else the CPU.
        threads: Threads of a call.
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
            threads: Threads of a call.
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
        """Return the same with the provider that was chosen, where none was asked for."""
        if self.providers is not None:
            return self
        return msgspec.structs.replace(self, providers=((AUTO_CHOICES[provider], {}),))


def short_name(name: str) -> str:
    """Return our word for one of ONNX Runtime's providers: `cuda` for `CUDAExecutionProvider`."""
    return name.removesuffix(SUFFIX).lower()


def _with_options(entry: ProviderOptions) -> tuple[str, Mapping[str, Any]]:
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, (list, tuple)) and len(entry) == 2 and isinstance(entry[1], Mapping):
        return entry[0], dict(entry[1])
    raise InputError(f"providers must be names, or pairs of a name and a dict of its options, got {entry!r}")
