"""Fuzz one target, guided by coverage: `python -m tests.fuzz TARGET --seconds 30`; needs atheris (Linux, CPython).

The corpus is made anew unless `--corpus` names a folder to keep it in. An input that raises what it must not, or takes
more than 5 seconds of the processor or 600 MB, ends it with the input in a file `build/fuzz/TARGET-…`; the same
command with `--input` and that file runs it alone.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import logging
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path

from tests.fuzz.target import Target

TARGETS = ("arrays", "bundle", "graph", "images", "manifest", "noise", "reference")
INSTRUMENTED = ["edgevae", "edgevae.train.data", "numpy.lib", "zipfile", "gzip", "PIL"]
FOUND = Path("build/fuzz")
# An image of 50 million pixels takes 4 bytes each while its colours convert, 3 in the array, and two seconds.
MAX_SECONDS = 5.0
MAX_BYTES = 600e6


class TooMuchError(Exception):
    """An input took more time or memory than any may."""


def limited(target: Target, data: bytes) -> None:
    """Check an input, and what the check takes."""
    started, peak = time.process_time(), peak_bytes()
    target.check(data)
    seconds, grown = time.process_time() - started, peak_bytes() - peak
    if seconds > MAX_SECONDS or grown > MAX_BYTES:
        raise TooMuchError(f"{seconds:.1f} s of the processor and {grown / 1e6:.0f} MB for {len(data)} bytes")


def kept(name: str, target: Target, data: bytes) -> None:
    """Check an input, and keep one that fails."""
    try:
        limited(target, data)
    except BaseException:
        FOUND.mkdir(parents=True, exist_ok=True)
        file = FOUND / f"{name}-{hashlib.sha256(data).hexdigest()[:16]}"
        file.write_bytes(data)
        print(f"found {file}", file=sys.stderr, flush=True)  # noqa: T201 - a command speaks
        raise


def peak_bytes() -> float:
    """Return the most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def dictionary_line(word: bytes) -> str:
    """Return a word as libFuzzer's dictionaries write it."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n'


def main() -> None:
    """Read the command line, and fuzz."""
    parser = argparse.ArgumentParser("python -m tests.fuzz", description="Fuzz one target, guided by coverage.")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--seed", type=int, help="seed of the fuzzer's choices; without it, every run makes others")
    parser.add_argument("--corpus", type=Path, help="folder that keeps what was found to be new")
    parser.add_argument("--input", type=Path, help="run this input alone")
    options = parser.parse_args()
    atheris = importlib.import_module("atheris")  # it has no types, and is not always there
    warnings.simplefilter("ignore")
    logging.disable()
    with atheris.instrument_imports(include=INSTRUMENTED):
        module = importlib.import_module(f"tests.fuzz.{options.target}")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        target: Target = module.make(work)
        if options.input is not None:
            limited(target, options.input.read_bytes())
            return
        corpus = options.corpus or work / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        for seed in target.seeds:
            (corpus / hashlib.sha256(seed).hexdigest()).write_bytes(seed)
            target.check(seed)  # what is reserved once counts for no input
        words = work / "words"
        words.write_text("".join(map(dictionary_line, target.words)))
        arguments = [f"-max_total_time={options.seconds}", f"-dict={words}", "-max_len=65536", "-rss_limit_mb=4096"]
        FOUND.mkdir(parents=True, exist_ok=True)
        arguments += ["-timeout=60", "-print_final_stats=1", f"-artifact_prefix={FOUND}/{options.target}-"]
        if options.seed is not None:
            arguments.append(f"-seed={options.seed}")
        atheris.Setup([sys.argv[0], *arguments, str(corpus)], lambda data: kept(options.target, target, data))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
