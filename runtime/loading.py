"""From a folder to a model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from . import inputs as _inputs
from .bundle import Bundle
from .cpus import usable_cpus
from .errors import BundleError, InputError
from .execution import Execution, ProviderOptions
from .graphs import Graphs
from .manifest import Precision
from .model import Model
from .signature import check_signatures

_MAX_THREADS = 1024


def load(
    path: str | os.PathLike[str],
    provider: str = "auto",
    threads: int | None = None,
    *,
    providers: Sequence[ProviderOptions] | None = None,
    session_options: Any = None,
    precision: Precision = "fp32",
    public_key: str | os.PathLike[str] | bytes | None = None,
) -> Model:
    """Load the bundle in the folder `path`.

    Args:
        path: The folder, with `manifest.json` in it.
        provider: `cpu`, `cuda`, or another of ONNX Runtime's execution providers, like `openvino`, `tensorrt`, `coreml`
            or `xnnpack`; `auto` is CUDA where it truly works, else the CPU. `Model.provider` says which it is.
        threads: Threads of a call: inside one operator, or, on the CPU with more than 256 rows a thread, on parts of
            the rows side by side. By default as many as there are CPUs that this process may use, by affinity and by
            the quota of a container.
        providers: For those who know ONNX Runtime, in the place of `provider`: its names in the order of preference,
            with options where there are any, like `[("OpenVINOExecutionProvider", {"device_type": "GPU"})]`. Each of
            them must work.
        session_options: For those who know ONNX Runtime: an `onnxruntime.SessionOptions` for all sessions, in the place
            of our own; it says how many threads there are, and `threads` must not be given.
        precision: `fp32`, or `fp16` or `int8` where the bundle has it; `manifest.precisions` says which there are, and
            what each loses. In `int8` a row's numbers depend a little on the rows beside it, which share its scale.
        public_key: That of the one who must have signed the bundle, Ed25519: the path of a PEM file, or PEM in bytes.
            What is not signed, was altered or was signed with another key is refused before any of it is decoded.

    Raises:
        BundleError: The bundle is missing, damaged, changed, newer than this runtime, or does not fit its manifest.
        InputError: An argument is out of range, or two of them contradict each other.
        InstallError: ONNX Runtime is not installed; or, for `public_key`, the package `cryptography`.
        ProviderError: A provider that was asked for does not work here, or can run nothing of this model; the message
            says why.
        SignatureError: The bundle is not signed with the private key that belongs to `public_key`.
    """
    if session_options is not None and threads is not None:
        raise InputError("threads and session_options were both given; set session_options.intra_op_num_threads")
    threads = None if threads is None else _inputs.count("threads", threads)
    if threads is not None and not 1 <= threads <= _MAX_THREADS:
        raise InputError(f"threads must be from 1 to {_MAX_THREADS}, got {threads}; leave it out to use all CPUs")
    bundle = Bundle(path, public_key)
    if not bundle.manifest.graphs:
        there = ", ".join(bundle.manifest.torch_files)
        raise BundleError(f"{bundle.path} has no ONNX graphs, only {there}; export it again with --format onnx")
    check_signatures(bundle.manifest)
    execution = Execution.of(provider, threads or usable_cpus(), providers, session_options)
    return Model(Graphs(bundle, execution, precision))
