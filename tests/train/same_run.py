"""Runs held against each other."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch

from edgevae.train import load_run


def assert_same_run(found: Path, expected: Path) -> None:
    for file in ("weights.safetensors", "checkpoint.safetensors"):
        ours, theirs = (safetensors.torch.load_file(folder / file) for folder in (found, expected))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items()), file
    assert load_run(found).evaluations == load_run(expected).evaluations
