"""A bundle, loaded: the object that applications use."""

from __future__ import annotations

from ._estimation import Estimation
from ._exploration import Exploration
from ._streaming import Streaming


class Model(Estimation, Exploration, Streaming):
    """A trained VAE. Made by `load`; its methods keep no state, and the same arguments give the same numbers.

    `encode`, `decode`, `reconstruct`, `generate` and `verify` are what every model can do; `elbo`, `log_likelihood`,
    `score`, `threshold`, `is_anomaly` and `posterior_predictive` say how likely and how sure; `interpolate`, `traverse`
    and `active_units` look at the latent; `reconstruct_batches` takes more than fits into memory.

    Where the model is conditional, each method takes `y`, the labels: integers from 0 to `num_classes - 1`, shape
    `(batch,)`, or one for all rows.
    """
