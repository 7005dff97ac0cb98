"""All that a training needs to go on as if it had never stopped: one file, written whole or not at all.

Tensors and notes lie in one safetensors file, so that no half of them can be another moment's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from edgevae.files import WriteError, write_file

from .errors import RunError

_NOTES = "notes"


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """A moment of a training.

    Args:
        tensors: Weights, the optimizer's moments, the states of the random generators, by name.
        notes: Numbers beside them: where in which epoch.
    """

    tensors: Mapping[str, Tensor]
    notes: Mapping[str, Any]

    def named(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names begin with `prefix`, without it."""
        return {name[len(prefix) :]: tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}

    def write(self, path: Path) -> None:
        """Write the checkpoint to `path`, whole or not at all.

        Raises:
            RunError: The disk is full, or the folder cannot be written to; what was there stays.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        write_whole(path, safetensors.torch.save(tensors, {_NOTES: json.dumps(self.notes)}))

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Read a checkpoint.

        Raises:
            RunError: It is missing or damaged.
        """
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
                return cls(tensors, json.loads((file.metadata() or {})[_NOTES]))
        except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
            raise RunError(f"the checkpoint {path} cannot be read: {error}") from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that, whatever happens, `path` holds either what it held before or all of `content`.

    Raises:
        RunError: It could not be written; nothing of it is left.
    """
    with run_errors(path):
        write_file(path, content)


@contextlib.contextmanager
def run_errors(path: Path) -> Iterator[None]:
    """Say of a file or folder that could not be written why, and what to do.

    Raises:
        RunError: In the place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        reason = error.reason if isinstance(error, WriteError) else error.strerror or str(error)
        remedy = "Make room, or see to the folder's permissions"
        if not path.parent.is_dir():
            reason, remedy = f"the folder {path.parent} is not there any more", "See to it that it stays"
        raise RunError(
            f"{path} could not be written: {reason}; what it held before is still there. {remedy}, and go on with "
            "--resume"
        ) from error
