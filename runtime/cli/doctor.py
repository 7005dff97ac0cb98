"""`vae-run doctor`: what this machine can run."""

from __future__ import annotations

import click
import msgspec

from ..doctor import Diagnosis, diagnose
from .options import FAILED, answer, json_option


@click.command(short_help="Say what this machine can run.")
@json_option
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Say what this machine can run: versions, providers that truly work, threads, and what to install.

    Each provider is tried with a small graph, none is believed. Where something has to be mended, the exit code is 1.

    \b
    Examples:
      vae-run doctor
      vae-run doctor --json
    """
    found = diagnose()
    answer(as_json, _text(found), **msgspec.structs.asdict(found))
    if found.problems:
        ctx.exit(FAILED)


def _text(found: Diagnosis) -> str:
    def listed(versions: dict[str, str]) -> str:
        return ", ".join(f"{name} {version}" for name, version in versions.items()) or "none"

    lines = [
        ("system", found.system),
        ("packages", listed(found.versions)),
        ("ONNX Runtime", listed(found.wheels)),
        ("threads", f"{found.threads} of {found.cpus} CPUs, by affinity and quota"),
        *(("provider", f"{check.name}: {'works' if check.works else check.obstacle}") for check in found.providers),
        *(("to mend", problem) for problem in found.problems),
    ]
    return "\n".join(f"{label:12}  {text}" for label, text in lines)
