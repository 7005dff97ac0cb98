"""From a folder to a model."""

from __future__ import annotations

import os

from . import _inputs
from ._bundle import Bundle
from ._cpus import usable_cpus
from ._errors import BundleError, InputError
from ._graphs import Graphs
from ._model import Model
from ._providers import ProviderChoice, check_choice
from ._signature import check_signatures

_MAX_THREADS = 1024


def load(path: str | os.PathLike[str], provider: ProviderChoice = "auto", threads: int | None = None) -> Model:
    """Load the bundle in the folder `path`.

    Args:
        path: The folder, with `manifest.json` in it.
        provider: `cpu`, `cuda`, or `auto`: CUDA where it truly works, else the CPU; `Model.provider` says which it is.
        threads: Threads inside one operator; by default as many as there are CPUs that this process may use.

    Raises:
        BundleError: The bundle is missing, damaged, changed, newer than this runtime, or does not fit its manifest.
        InputError: `provider` or `threads` is out of range.
        InstallError: ONNX Runtime is not installed.
        ProviderError: `provider` is `cuda`, and CUDA does not work here; the message says why.
    """
    check_choice(provider)
    if threads is not None and not 1 <= _inputs.count("threads", threads) <= _MAX_THREADS:
        raise InputError(f"threads must be from 1 to {_MAX_THREADS}, got {threads}; leave it out to use all CPUs")
    bundle = Bundle(path)
    if not bundle.manifest.graphs:
        there = ", ".join(bundle.manifest.torch_files)
        raise BundleError(f"{bundle.path} has no ONNX graphs, only {there}; export it again with --format onnx")
    check_signatures(bundle.manifest)
    return Model(Graphs(bundle, provider, threads or usable_cpus()))
