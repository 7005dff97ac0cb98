"""A bundle, loaded: the object that applications use."""

from __future__ import annotations

from .estimation import Estimation
from .exploration import Exploration
from .streaming import Streaming


class Model(Estimation, Exploration, Streaming):
    """A trained VAE. Made by `load`; its methods keep no state, and the same arguments give the same numbers.

    `encode`, `decode`, `reconstruct`, `generate` and `verify` are what every model can do; `elbo`, `log_likelihood`,
    `score`, `threshold`, `is_anomaly` and `posterior_predictive` say how likely and how sure; `interpolate`, `traverse`
    and `active_units` look at the latent; `reconstruct_batches` takes more than fits into memory.

    Where there is noise, `seed` names a stream for one call, from 0 to 2**64 - 1; a `Noise` goes on where the last call
    left it, as PyTorch's generator does. One model serves many threads. It pickles as the path of its bundle, is closed
    by `close()` or a `with` block, and has to be loaded anew in a forked process.

    Where the model is conditional, each method takes `y`, the labels: integers from 0 to `num_classes - 1`, shape
    `(batch,)`, or one for all rows.
    """
