"""Load each bundle of a corpus as an application would, and say what came of it: one JSON line a bundle.

It runs in a process of its own, with the bundles' folder as the working folder. What is opened outside of a bundle,
started or unpickled meanwhile is reported beside the time and the memory that it took.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import edgevae

ADDRESS_SPACE_BYTES = 2**34  # so that a defect does not take the machine with it
FORBIDDEN = (
    "subprocess",
    "os.",
    "pickle",
    "marshal",
    "socket",
    "ctypes",
    "exec",
    "compile",
    "import",
    "code.",
    "shutil",
)
HARMLESS = {"os.listdir", "os.scandir"}

_watched: Path | None = None
_seen: list[str] = []


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Note each forbidden thing that happens while a bundle is used."""
    if _watched is None:
        return
    if event == "open":
        path, _, flags = arguments
        inside = isinstance(path, int) or Path(os.fsdecode(path)).absolute().parent == _watched
        if not inside or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            _seen.append(f"open {path} {flags}")
    elif event.startswith(FORBIDDEN) and event not in HARMLESS and not is_parsed_only(event, arguments):
        _seen.append(f"{event} {arguments}"[:200])


def is_parsed_only(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether this is `ast.parse` of the literal that is the header of an array: nothing can be executed from it."""
    source, name = (*arguments, None, None)[:2]
    return event == "compile" and name == "<unknown>" and str(source).lstrip("b'\"").startswith("{'descr'")


def use(path: Path) -> None:
    """Do all with a bundle that makes the runtime read it."""
    with edgevae.load(path, provider="cpu", threads=1) as model:
        precisions = list(model.manifest.precisions)
        model.warm_up((1, 3))
        if not model.verify().passed:
            raise AssertionError("verification failed, and nothing was refused")
    for precision in precisions:
        with edgevae.load(path, provider="cpu", threads=1, precision=precision) as model:
            model.warm_up()


def memory_bytes(field: str) -> int:
    """Return this process's memory: `VmRSS` now, or `VmHWM` at most since it was last reset."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def attack(path: Path) -> dict[str, Any]:
    """Use one bundle; return how that ended, what it took and what was seen."""
    global _watched  # noqa: PLW0603 - an audit hook has no arguments of ours, and cannot be removed
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets VmHWM
    before, start = memory_bytes("VmRSS"), time.process_time()
    _seen.clear()
    _watched = path.absolute()
    error: BaseException | None = None
    try:
        use(path)
    except BaseException as caught:  # noqa: BLE001 - whatever it is, the test is to see it
        error = caught
    finally:
        _watched = None
    return {
        "name": path.name,
        "error": type(error).__name__ if error else None,
        "ours": isinstance(error, edgevae.BundleError) or _failed_in_a_run(error),
        "message": str(error)[:2000],
        "seconds": time.process_time() - start,
        "bytes": memory_bytes("VmHWM") - before,
        "seen": list(_seen),
    }


def _failed_in_a_run(error: BaseException | None) -> bool:
    """Whether ONNX Runtime refused in the middle of a run what could not be seen before, as it does with any graph."""
    return type(error) is edgevae.EdgeVAEError and "failed in" in str(error)


def main() -> None:
    """Take the name of the good bundle, and the folder that has it and the others."""
    good, corpus = sys.argv[1], Path(sys.argv[2])
    use(corpus / good)  # what is imported when it is first needed is imported now
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    os.chdir(corpus)
    sys.addaudithook(watch)
    for path in sorted(path for path in corpus.iterdir() if path.name != good):
        print(json.dumps(attack(path)), flush=True)  # noqa: T201 - its answer


if __name__ == "__main__":
    main()
