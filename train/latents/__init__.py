"""p(z) and q(z|x), one file each. A new one is a file with a `Latent` in it, and an entry here."""

from .base import COMPONENT_SITE, LATENT_SITE, Latent, site_names
from .hierarchical import Hierarchical
from .mixture import Mixture
from .normal import Normal, kl_to_standard_normal

LATENTS: dict[str, type[Latent]] = {"normal": Normal, "hierarchical": Hierarchical, "mixture": Mixture}

__all__ = [
    "COMPONENT_SITE",
    "LATENTS",
    "LATENT_SITE",
    "Hierarchical",
    "Latent",
    "Mixture",
    "Normal",
    "kl_to_standard_normal",
    "site_names",
]
