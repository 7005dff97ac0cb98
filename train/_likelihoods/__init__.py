"""p(x|z), one file each. A new one is a file with a `Likelihood` in it, and an entry here."""

from ._base import Likelihood
from ._bernoulli import Bernoulli
from ._categorical import Categorical
from ._continuous_bernoulli import ContinuousBernoulli
from ._normal import Normal

LIKELIHOODS: dict[str, type[Likelihood]] = {
    "bernoulli": Bernoulli,
    "continuous-bernoulli": ContinuousBernoulli,
    "normal": Normal,
    "categorical": Categorical,
}

__all__ = ["LIKELIHOODS", "Bernoulli", "Categorical", "ContinuousBernoulli", "Likelihood", "Normal"]
