"""`vae-run`, also `python -m edgevae`."""

from __future__ import annotations

import click

from .about import info, verify
from .bench import bench
from .completion import completion
from .doctor import doctor
from .draw import generate, interpolate, traverse
from .infer import decode, encode, reconstruct
from .score import score


class _InOrder(click.Group):
    """A group that lists its commands in the order in which a person comes to need them."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.version_option(package_name="edgevae", prog_name="vae-run")
def main() -> None:
    """Run an exported VAE, without PyTorch.

    INPUTS are images (PNG, JPEG), folders of images, .npy arrays, .npz files with an array x, or IDX files (-ubyte,
    .idx, .gz); uint8, or float, for most models in [0, 1]. An output is written whole or not at all.

    Exit codes: 0 done; 1 a check failed; 2 wrong usage, bad input, or something that is missing here; 130 Ctrl-C.

    \b
    Examples:
      vae-run info models/digits-mlp
      vae-run generate models/digits-mlp -n 24 --seed 0 --out samples.png
      vae-run reconstruct models/digits-mlp models/digits-mlp/reference.npz --out reconstructions.png
    """


for _command in (
    info,
    verify,
    encode,
    decode,
    reconstruct,
    score,
    generate,
    interpolate,
    traverse,
    bench,
    doctor,
    completion,
):
    main.add_command(_command)
