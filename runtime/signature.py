"""What goes in and out of each graph, by the model's choices: the one place that says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import msgspec

from .errors import BundleError
from .manifest import GraphName, Manifest, TensorSpec
from .model_spec import ModelSpec

Part = Literal["all", "encoder", "decoder"]
"""What a bundle holds of a model: all of it, what makes latents, or what makes observations of them."""
PARTS: tuple[Part, ...] = get_args(Part)
_GRAPHS_OF: dict[Part, tuple[GraphName, ...]] = {
    "all": get_args(GraphName),
    "encoder": ("encoder",),
    "decoder": ("decoder", "prior"),
}


class Signature(msgspec.Struct, frozen=True):
    """The inputs and the outputs of a graph, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def level_names(name: str, num_levels: int) -> tuple[str, ...]:
    """Return the names of a quantity that each level has: `eps`, `eps_2`, `eps_3`, ..."""
    return tuple(name if level == 0 else f"{name}_{level + 1}" for level in range(num_levels))


def signatures(model: ModelSpec, parameters: Sequence[TensorSpec]) -> dict[GraphName, Signature]:
    """Return the signature of each graph that a model has.

    A hierarchy's quantities above z are numbered from 2, and the encoder takes the noise of all levels but the highest,
    because each level hangs on a draw of the one below. Only latents that are no standard normal have a `prior`.

    Args:
        model: Choices and sizes.
        parameters: The likelihood's parameters, `loc_img` first.
    """
    x, z = tensor("x", model.data_dim), tensor("z", model.z_dim)
    y = (tensor("y", dtype="int64"),) if model.num_classes else ()
    levels = len(model.z_dims)
    eps = _levels("eps", model)
    locs, scales = _levels("z_loc", model), _levels("z_scale", model)
    posterior = tuple(part for level in zip(locs, scales, strict=True) for part in level)
    if model.latent == "mixture":
        posterior += (tensor("component_probs", model.num_components),)
    terms = (tensor("log_px_z"), tensor("log_pz"), tensor("log_qz_x"))
    parameters = tuple(parameters)
    found: dict[GraphName, Signature] = {
        "encoder": Signature((x, *y, *eps[: levels - 1]), posterior),
        "decoder": Signature((z, *y), parameters),
        "reconstruct": Signature((x, *y, eps[0]), parameters[:1]),
        "elbo": Signature((x, z, locs[0], scales[0], *parameters, *eps[1:]), terms),
        "observation": Signature((*parameters, tensor("eps_obs", model.data_dim)), (tensor("obs", model.data_dim),)),
    }
    z_prior = (tensor("z_prior", model.z_dim),)
    if model.latent == "hierarchical":
        found["prior"] = Signature(eps, z_prior)
    if model.latent == "mixture":
        prior_probs = tensor("prior_probs", model.num_components)
        found["prior"] = Signature((tensor("component", dtype="int64"), eps[0]), (*z_prior, prior_probs))
    return found


def graphs_of(part: Part, graphs: Sequence[GraphName]) -> list[GraphName]:
    """Return those of a model's graphs that belong to a part of it."""
    return [name for name in graphs if name in _GRAPHS_OF[part]]


def part_of(manifest: Manifest) -> Part:
    """Return which part of its model a bundle holds."""
    return next((part for part in PARTS[1:] if set(manifest.graphs) <= set(_GRAPHS_OF[part])), "all")


def check_signatures(manifest: Manifest) -> None:
    """Refuse a manifest whose graphs are not those of the model that it describes, or of one of its parts.

    Raises:
        BundleError: A graph is missing or too much, or has an input or output of another name or size.
    """
    contradiction = "the manifest contradicts itself: {}; export the model again"
    part = part_of(manifest)
    loc_img = tensor("loc_img", manifest.model.data_dim)
    parameters = manifest.graphs["decoder"].outputs if "decoder" in manifest.graphs else (loc_img,)
    if parameters[:1] != (loc_img,):
        raise BundleError(
            contradiction.format(f"the first output of decoder is no loc_img of {manifest.model.data_dim}")
        )
    expected = signatures(manifest.model, parameters)
    if set(manifest.graphs) != set(graphs_of(part, list(expected))):
        raise BundleError(
            contradiction.format(f"its graphs are {', '.join(manifest.graphs)}, the model's {', '.join(expected)}")
        )
    others = signatures(manifest.model, ()).values()
    known = [spec.name for signature in others for spec in (*signature.inputs, *signature.outputs)]
    names = [spec.name for spec in parameters]
    if len(set(names)) < len(names) or set(names[1:]).intersection(known):
        raise BundleError(contradiction.format(f"the outputs of decoder, {_text(parameters)}, need names of their own"))
    for precision, reduced in manifest.precisions.items():
        if not reduced.graphs or not set(reduced.graphs) <= set(manifest.graphs) or part != "all":
            raise BundleError(contradiction.format(f"{precision} has {', '.join(reduced.graphs) or 'no graphs'}"))
    for name, graph in manifest.graphs.items():
        for what, found, wanted in (
            ("inputs", graph.inputs, expected[name].inputs),
            ("outputs", graph.outputs, expected[name].outputs),
        ):
            if found != wanted:
                raise BundleError(
                    contradiction.format(f"the {what} of {name} are {_text(found)}, the model's are {_text(wanted)}")
                )


def tensor(name: str, *sizes: int, dtype: Literal["float32", "int64"] = "float32") -> TensorSpec:
    """Return the tensor of a name with rows of these sizes."""
    return TensorSpec(name=name, dtype=dtype, shape=("batch", *sizes))


def _levels(name: str, model: ModelSpec) -> tuple[TensorSpec, ...]:
    names = level_names(name, len(model.z_dims))
    return tuple(tensor(name, size) for name, size in zip(names, model.z_dims, strict=True))


def _text(tensors: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{tensor.name} {tensor.shape[1:]}" for tensor in tensors)
