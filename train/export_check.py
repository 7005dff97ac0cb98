"""Whether a VAE can be exported, said before its first step and not after its last epoch."""

from __future__ import annotations

import copy
import importlib.util
from typing import TYPE_CHECKING

import torch

from edgevae import ModelSpec

from .conversion import DEFAULT_OPSET, convert
from .errors import TraceError
from .program import PyroProgram, TracedRun, run_program
from .tracing import trace

if TYPE_CHECKING:
    from .vae import VAE

_ROWS = 5  # of the example with which a VAE is traced


def program_of(vae: VAE) -> PyroProgram:
    """Return a VAE as a Pyro program of the arguments `x`, shape `(batch, data_dim)`, and `y` where it has labels.

    Args:
        vae: The model, on the CPU. It is used as it is, not copied.

    Raises:
        ProgramError: It fails, or its rows depend on each other; the message names the line.
        TraceError: It takes numbers out of tensors.
    """
    config, generator = vae.config, torch.Generator().manual_seed(0)
    x = torch.rand((_ROWS, config.data_dim), generator=generator)
    if not vae.decoder.likelihood.unit_interval:
        x = torch.as_tensor(config.data_loc) + torch.as_tensor(config.data_scale) * x
    labels = {"y": torch.arange(_ROWS) % config.num_classes} if config.num_classes else {}
    program = run_program(vae.model, vae.guide, {"x": x, **labels})
    for note in program.constants:
        raise TraceError(f"{note}, which a graph cannot do: it is the same for all data")
    return program


def check_exportable(vae: VAE) -> None:
    """Check that networks, a likelihood or a latent of a user's own can be exported; ours can.

    The model is traced. Where the export's packages are installed, the networks are written in ONNX too, which shows
    operators that ONNX does not have.

    Args:
        vae: The model, on any device; left as it is.

    Raises:
        TraceError: A function cannot be exported; the message names the line of the user's program.
    """
    parts = (vae.encoder, vae.decoder, vae.decoder.likelihood, vae.latent)
    if all(type(part).__module__.startswith(f"{__package__}.") for part in parts):
        return
    try:
        program = program_of(copy.deepcopy(vae).cpu().eval())
        runs = {run: TracedRun(program, run) for run in program.draws}
        reconstruct = runs["posterior"].function([], ["obs.mean"])
        if importlib.util.find_spec("onnxscript") is not None:
            convert(trace(reconstruct.module, reconstruct.examples, [0] * len(reconstruct.examples)), DEFAULT_OPSET)
    except TraceError as error:
        raise TraceError(
            f"the model could be trained, but not exported: {error}. To train it all the same, give --no-export-check"
        ) from error


def model_spec(vae: VAE) -> ModelSpec:
    """Return what a manifest says of the model."""
    config = vae.config
    return ModelSpec(
        architecture=config.architecture_name,
        likelihood=config.likelihood,
        latent=config.latent,  # type: ignore[arg-type]  # the manifest's schema knows which there are
        data_shape=config.data_shape,
        z_dims=config.z_dims,
        hidden_dim=config.hidden_dim,
        num_classes=config.num_classes,
        num_components=len(vae.latent.component_probs),
        unit_interval=vae.decoder.likelihood.unit_interval,
    )
