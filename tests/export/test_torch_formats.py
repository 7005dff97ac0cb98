"""TorchScript and pt2, as their users load them."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgevae.train import VAE, Dataset


def load_ts(path: Path) -> Callable[..., Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.load(path)


def load_pt2(path: Path) -> Callable[..., Any]:
    return torch.export.load(path).module()


@pytest.mark.parametrize(("suffix", "load"), [(".ts", load_ts), (".pt2", load_pt2)])
@pytest.mark.parametrize("batch", [1, 2, 7, 256])
def test_the_programs_give_the_networks_outputs_at_every_batch_size(
    bundle: Path, vae: VAE, digits: Dataset, suffix: str, load: Callable[[Path], Callable[..., Any]], batch: int
) -> None:
    x = digits.train[:batch].flatten(1)
    with torch.no_grad():
        expected = vae.encoder(x)
        found = load(bundle / f"encoder{suffix}")(x)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(load(bundle / f"decoder{suffix}")(expected[0]), vae.decoder(expected[0]))


def test_torchscript_holds_no_source_positions(bundle: Path) -> None:
    for name in ("encoder.ts", "decoder.ts"):
        with zipfile.ZipFile(bundle / name) as archive:
            assert not [entry for entry in archive.namelist() if entry.endswith(".debug_pkl")]
