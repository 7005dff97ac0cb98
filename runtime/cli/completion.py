"""`completion`: what makes a shell complete `vae-run`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from .options import messages

_PROGRAM = "vae-run"
_VARIABLE = "_VAE_RUN_COMPLETE"


@click.command(short_help="Print what completes vae-run in a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script by which a shell completes vae-run: commands, options, files.

    \b
    To have it in every shell, add a line to its configuration:
      bash  ~/.bashrc                   eval "$(vae-run completion bash)"   (bash 4.4 or newer)
      zsh   ~/.zshrc                    eval "$(vae-run completion zsh)"
      fish  ~/.config/fish/config.fish  vae-run completion fish | source

    \b
    Examples:
      vae-run completion bash
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise click.ClickException(f"this version of click cannot complete in {shell}")
    with messages():
        click.echo(kind(ctx.find_root().command, {}, _PROGRAM, _VARIABLE).source())
