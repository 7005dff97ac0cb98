"""p(x|z), one file each. A new one is a file with a `Likelihood` in it, and an entry here."""

from train._likelihoods._base import Likelihood
from train._likelihoods._bernoulli import Bernoulli
from train._likelihoods._categorical import Categorical
from train._likelihoods._continuous_bernoulli import ContinuousBernoulli
from train._likelihoods._normal import Normal

LIKELIHOODS: dict[str, type[Likelihood]] = {
    "bernoulli": Bernoulli,
    "continuous-bernoulli": ContinuousBernoulli,
    "normal": Normal,
    "categorical": Categorical,
}

__all__ = ["LIKELIHOODS", "Bernoulli", "Categorical", "ContinuousBernoulli", "Likelihood", "Normal"]
