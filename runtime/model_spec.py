"""What a manifest says of the model: its choices and sizes."""

import math
from typing import Annotated, Literal

import msgspec

from .program_spec import ProgramSpec
from .record import MAX_VALUES, Record, Size, Text

Count = Annotated[int, msgspec.Meta(ge=0, le=2**20)]
Sizes = Annotated[tuple[Size, ...], msgspec.Meta(min_length=1, max_length=64)]


class ModelSpec(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The model's choices and sizes.

    Args:
        architecture: The networks, like `mlp` or `conv`, or the name of a Pyro program; the runtime runs any.
        likelihood: p(x|z), like `bernoulli` or `normal`; the runtime runs any, its first parameter is `loc_img`.
        latent: p(z): `normal`, one standard normal; `hierarchical`, levels of them; `mixture`; or `program`, what a
            Pyro program of the user's own makes of standard normal noise.
        data_shape: Shape of one observation, `(channels, height, width)` for images.
        z_dims: Sizes of the latent's levels, that of z first; one, except in a hierarchy.
        hidden_dim: Width of the hidden layers; 0 where it is not known.
        num_classes: Number of labels that the networks see, 0 where they see none.
        num_components: Number of a mixture's components; 0 for the other latents.
        unit_interval: Whether observations must lie in [0, 1].
        has_draws: Whether a graph `observation` draws from p(x|z). Counts and other draws that take no fixed amount of
            noise, like those of a Poisson distribution, have none.
        program: The sites of a Pyro program that is used by site, see `load_program`; the other fields are those of its
            first argument then. `None` for all models with one latent and one observed site.
    """

    architecture: Text
    likelihood: Text
    latent: Literal["normal", "hierarchical", "mixture", "program"]
    data_shape: Sizes
    z_dims: Sizes
    hidden_dim: Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
    num_classes: Count
    num_components: Count
    unit_interval: bool
    has_draws: bool = True
    program: ProgramSpec | None = None

    def __post_init__(self) -> None:
        if (self.latent == "hierarchical") != (len(self.z_dims) > 1):
            raise ValueError(f"latent {self.latent} does not go with z_dims {self.z_dims}")
        if (self.latent == "mixture") != (self.num_components > 0):
            raise ValueError(f"latent {self.latent} does not go with {self.num_components} components")
        if (most := max(self.data_dim, sum(self.z_dims), self.hidden_dim)) > MAX_VALUES:
            raise ValueError(f"data_shape, z_dims and hidden_dim must each be at most {MAX_VALUES} values, got {most}")

    @property
    def sizes(self) -> str:
        """The sizes in one word, like `784-400-50`: of the data, of the hidden layers, of z and the levels above it."""
        return "-".join(str(size) for size in (self.data_dim, self.hidden_dim, *self.z_dims) if size)

    @property
    def latent_text(self) -> str:
        """The latent in words."""
        if self.latent == "hierarchical":
            return f"hierarchical, levels of {' and '.join(map(str, self.z_dims))} dimensions, the lowest first"
        kind = f"mixture of {self.num_components}" if self.num_components else self.latent
        return f"{kind}, {self.z_dim} dimensions"

    def encode(self) -> str:
        """Return the choices as JSON, as each graph carries them."""
        return msgspec.json.encode(self).decode()

    @property
    def z_dim(self) -> int:
        """Number of dimensions of z, which the decoder takes: the first of `z_dims`."""
        return self.z_dims[0]

    @property
    def data_dim(self) -> int:
        """Number of values in one observation, the product of `data_shape`."""
        return math.prod(self.data_shape)
