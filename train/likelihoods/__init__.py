"""p(x|z), one file each. A new one is a file with a `Likelihood` in it, and an entry here."""

from .base import Likelihood
from .bernoulli import Bernoulli
from .categorical import Categorical
from .continuous_bernoulli import ContinuousBernoulli
from .normal import Normal

LIKELIHOODS: dict[str, type[Likelihood]] = {
    "bernoulli": Bernoulli,
    "continuous-bernoulli": ContinuousBernoulli,
    "normal": Normal,
    "categorical": Categorical,
}

__all__ = ["LIKELIHOODS", "Bernoulli", "Categorical", "ContinuousBernoulli", "Likelihood", "Normal"]
