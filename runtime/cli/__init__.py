"""`vae-run`, also `python -m edgevae`."""

from __future__ import annotations

import click

from .. import __version__
from .inference import decode, encode, generate, interpolate, reconstruct, score, traverse
from .inspection import bench, completion, doctor, info, verify
from .sections import SafeGroup


@click.group(cls=SafeGroup, context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="vae-run")
def main() -> None:
    """Run an exported VAE, without PyTorch.

    INPUTS are images (PNG, JPEG and others), folders of images, .npy arrays, .npz files with an array x, or IDX files
    (-ubyte, .idx, .gz). Values are uint8, or floats, for most models in [0, 1]. A file is written whole or not at all.
    A Pyro program that is used by its sites takes .npz files with its arguments by name; `info` lists them.

    Exit codes: 0 success; 1 a check failed; 2 wrong usage, bad input or a missing package; 130 Ctrl-C.

    \b
    Examples:
      vae-run info models/digits-mlp
      vae-run generate models/digits-mlp -n 24 --seed 0 --out samples.png
      vae-run reconstruct models/digits-mlp models/digits-mlp/reference.npz --out reconstructions.png
    """


_WITH_MODEL = (encode, decode, reconstruct, score, generate, interpolate, traverse)
for _command in (info, verify, *_WITH_MODEL, bench, doctor, completion):
    main.add_command(_command)
