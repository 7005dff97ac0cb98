"""Random draws of a Pyro program, lifted into inputs: a site's value becomes a function of given noise.

Distributions draw from a few primitives of PyTorch, whatever they are made of. `LiftedDraws` answers those primitives
from noise of two kinds, standard normal and uniform in [0, 1):

| primitive | value |
| --- | --- |
| `randn`, `normal_`, `normal` | `mean + std * eps` |
| `rand`, `uniform_` | `low + (high - low) * u` |
| `exponential_` | `-log(1 - u) / rate` |
| `cauchy_` | `median + sigma * tan(pi * (u - 1/2))` |
| `bernoulli` | `u < p` |
| `multinomial`, with replacement | the number of cumulative probabilities that are at most `u` |

The first two are how PyTorch computes them, so that the same noise gives the same value. The others are inverses of the
distribution function. Gamma, Dirichlet, Poisson and binomial draws reject or repeat: they are no function of a fixed
amount of noise, and the values of their sites are inputs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..errors import ProgramError
from ..tracing import Line, line_of_call

NoiseKind = Literal["normal", "uniform"]

_R = TypeVar("_R")

_OUTSIDE: dict[Callable[..., Any], str] = {
    torch._standard_gamma: "gamma",  # noqa: SLF001 - what Gamma and StudentT draw with
    torch._sample_dirichlet: "Dirichlet",  # noqa: SLF001 - what Dirichlet and Beta draw with
    torch.poisson: "Poisson",
    torch.binomial: "binomial",
}
_REFUSED: dict[Callable[..., Any], str] = {
    torch.randperm: "torch.randperm",
    torch.randint: "torch.randint",
    torch.randint_like: "torch.randint_like",
    torch.Tensor.random_: "Tensor.random_",
    torch.Tensor.geometric_: "Tensor.geometric_",
    torch.Tensor.log_normal_: "Tensor.log_normal_",
}


_DECISIONS = {
    torch.Tensor.__bool__,
    torch.Tensor.__int__,
    torch.Tensor.__float__,
    torch.Tensor.__index__,
    torch.Tensor.item,
}
_INNER = (str(Path(torch.__file__).parent) + os.sep, __file__)


class DrawError(ProgramError):
    """A program draws what cannot be lifted; the message says what and where."""


@dataclasses.dataclass(frozen=True, eq=False)
class Drawn:
    """One draw, as it was recorded.

    Args:
        site: The sample statement that drew; empty where the program drew outside of one.
        kind: The kind of noise.
        noise: The noise.
        exact: Whether PyTorch's CPU generator computes the same value from the same noise.
    """

    site: str
    kind: NoiseKind
    noise: Tensor
    exact: bool


@dataclasses.dataclass(frozen=True)
class Decision:
    """A number that the program took out of a tensor, by `if`, `int()`, `.item()` and the like.

    Args:
        file: The file of the line that did; for a number of a statement itself, what it is, like `scale of z`.
        line: Its number, from 1; 0 for a number of a statement itself.
        value: The number.
    """

    file: str
    line: int
    value: bool | int | float | complex


class LiftedDraws:
    """A context in which a program's draws come from noise.

    Args:
        noise: The noise of each site, in the order of its draws. `None` takes it from PyTorch's generator.
        values: Values that sites take, by name; these sites do not draw.
        decisions: What the program gets where it takes numbers out of tensors: a trace has no values. `None` gives it
            the numbers.

    Attributes:
        drawn: The draws, in order.
        outside: Which sites drew what is no function of a fixed amount of noise, and its name.
        decided: The numbers that the program took out of tensors, in order.
        lines: The line of the user's program that each site is in, by name; of a probe alone, as looking takes time.
    """

    def __init__(
        self,
        noise: Mapping[str, Sequence[Tensor]] | None = None,
        values: Mapping[str, Tensor] | None = None,
        decisions: Sequence[Decision] | None = None,
    ) -> None:
        self.drawn: list[Drawn] = []
        self.outside: dict[str, str] = {}
        self.decided: list[Decision] = []
        self.lines: dict[str, Line | None] = {}
        self.site = ""
        self._decisions = None if decisions is None else list(decisions)
        self._noise = None if noise is None else {site: iter(tensors) for site, tensors in noise.items()}
        self._contexts = contextlib.ExitStack()
        self._values = values or {}

    def __enter__(self) -> LiftedDraws:
        self._contexts.enter_context(_Sites(self, self._values))
        self._contexts.enter_context(_Primitives(self))
        return self

    def __exit__(self, *_error: object) -> None:
        self._contexts.close()

    @property
    def is_probe(self) -> bool:
        """Whether the noise comes from PyTorch's generator: the program is run to see what it consists of."""
        return self._noise is None

    def of(self, site: str, draw: Callable[[], _R]) -> _R:
        """Return what `draw` draws, in the name of a site."""
        self.site, before = site, self.site
        try:
            return draw()
        finally:
            self.site = before

    def take(self, kind: NoiseKind, shape: Sequence[int], dtype: torch.dtype | None, *, exact: bool = True) -> Tensor:
        """Return noise for the present site."""
        if self._noise is None:
            noise = torch.randn(*shape) if kind == "normal" else torch.rand(*shape)
        else:
            found = next(self._noise.get(self.site, iter(())), None)
            if found is None:
                raise DrawError(f"{_where(self.site)} draws more often than in the first run of the program")
            noise = found
        self.drawn.append(Drawn(self.site, kind, noise, exact))
        return noise.to(dtype or torch.get_default_dtype())

    def decide(self, take: Callable[[], Any]) -> Any:
        """Return the number that a program takes out of a tensor."""
        frame = next(
            frame for frame, _ in traceback.walk_stack(None) if not frame.f_code.co_filename.startswith(_INNER)
        )
        return self._decide(frame.f_code.co_filename, frame.f_lineno, take)

    def _decide(self, file: str, line: int, take: Callable[[], Any]) -> Any:
        if self._decisions is None:
            self.decided.append(Decision(file, line, take()))
            return self.decided[-1].value
        for place, decision in enumerate(self._decisions):
            if (decision.file, decision.line) == (file, line):
                return self._decisions.pop(place).value
        return take()

    def scale_of(self, msg: Any) -> Any:
        """Return the factor of a site's log-density for one row: without those of plates, which scale data up.

        It is a number that the program decides on: in a trace, a plate's factor would be a symbol divided by itself.
        """
        if isinstance(msg["scale"], Tensor):
            return msg["scale"]
        plates = math.prod(
            frame.full_size / frame.size for frame in msg["cond_indep_stack"] if frame.vectorized and frame.full_size
        )
        return self._decide(f"scale of {msg['name']}", 0, lambda: msg["scale"] / plates)


class _Sites(Messenger):
    """Says which site draws, and gives sites their values."""

    def __init__(self, draws: LiftedDraws, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._draws, self._values = draws, values

    def _pyro_sample(self, msg: Any) -> None:
        self._draws.site = msg["name"]
        if self._draws.is_probe:
            self._draws.lines[msg["name"]] = line_of_call()
        if msg["name"] in self._values and not msg["is_observed"]:
            msg["value"] = self._values[msg["name"]]
            msg["done"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        self._draws.site = ""
        if not site_is_subsample(msg):
            msg["scale"] = self._draws.scale_of(msg)
            # At once, while transforms still keep the base's value for this one: an inverse may be slow or missing.
            msg["unscaled_log_prob"] = msg["fn"].log_prob(msg["value"])
            msg["log_prob"] = scale_and_mask(msg["unscaled_log_prob"], msg["scale"], msg["mask"])


class _Primitives(TorchFunctionMode):
    """Answers PyTorch's random functions."""

    def __init__(self, draws: LiftedDraws) -> None:
        super().__init__()
        self._draws = draws

    def __torch_function__(
        self, func: Callable[..., Any], _types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _LIFTED:
            return _LIFTED[func](self._draws, *args, **(kwargs or {}))
        if func in _DECISIONS:
            return self._draws.decide(lambda: func(*args, **(kwargs or {})))
        if func in _OUTSIDE:
            self._draws.outside[self._draws.site] = _OUTSIDE[func]
        if func in _REFUSED:
            raise DrawError(f"{_where(self._draws.site)} calls {_REFUSED[func]}, which is no function of given noise")
        return func(*args, **(kwargs or {}))


def _where(site: str) -> str:
    return f"site {site!r}" if site else "the program, outside of its sample statements,"


def _sizes(size: Sequence[Any]) -> Sequence[int]:
    """Sizes are given one by one or as one sequence."""
    return size[0] if len(size) == 1 and isinstance(size[0], (tuple, list)) else size


def _randn(draws: LiftedDraws, *size: Any, dtype: torch.dtype | None = None, **options: Any) -> Tensor:
    return draws.take("normal", _sizes(options.get("size", size)), dtype)


def _rand(draws: LiftedDraws, *size: Any, dtype: torch.dtype | None = None, **options: Any) -> Tensor:
    return draws.take("uniform", _sizes(options.get("size", size)), dtype)


def _randn_like(draws: LiftedDraws, like: Tensor, *, dtype: torch.dtype | None = None, **_options: Any) -> Tensor:
    return draws.take("normal", like.shape, dtype or like.dtype)


def _rand_like(draws: LiftedDraws, like: Tensor, *, dtype: torch.dtype | None = None, **_options: Any) -> Tensor:
    return draws.take("uniform", like.shape, dtype or like.dtype)


def _normal(draws: LiftedDraws, mean: Any, std: Any = 1.0, size: Any = None, **_options: Any) -> Tensor:
    tensors = [value for value in (mean, std) if isinstance(value, Tensor)]
    shape = torch.broadcast_shapes(*(tensor.shape for tensor in tensors)) if tensors else size
    value: Tensor = mean + std * draws.take("normal", shape, tensors[0].dtype if tensors else None)
    return value


def _normal_(draws: LiftedDraws, into: Tensor, mean: float = 0, std: float = 1, **_options: Any) -> Tensor:
    noise = draws.take("normal", into.shape, into.dtype)
    return into.copy_(noise if (mean, std) == (0, 1) else mean + std * noise)


def _uniform_(draws: LiftedDraws, into: Tensor, low: float = 0, high: float = 1, **_options: Any) -> Tensor:
    return into.copy_(low + (high - low) * draws.take("uniform", into.shape, into.dtype))


def _exponential_(draws: LiftedDraws, into: Tensor, lambd: float = 1, **_options: Any) -> Tensor:
    return into.copy_(-torch.log1p(-draws.take("uniform", into.shape, into.dtype, exact=False)) / lambd)


def _cauchy_(draws: LiftedDraws, into: Tensor, median: float = 0, sigma: float = 1, **_options: Any) -> Tensor:
    noise = draws.take("uniform", into.shape, into.dtype, exact=False)
    return into.copy_(median + sigma * torch.tan(math.pi * (noise - 0.5)))


def _bernoulli(draws: LiftedDraws, probs: Tensor, *_args: Any, **_options: Any) -> Tensor:
    return (draws.take("uniform", probs.shape, probs.dtype, exact=False) < probs).to(probs.dtype)


def _bernoulli_(draws: LiftedDraws, into: Tensor, probs: Any = 0.5, **_options: Any) -> Tensor:
    return into.copy_((draws.take("uniform", into.shape, into.dtype, exact=False) < probs).to(into.dtype))


def _multinomial(
    draws: LiftedDraws, probs: Tensor, num_samples: int, replacement: bool = False, **_options: Any
) -> Tensor:
    if not replacement and num_samples > 1:
        raise DrawError(f"{_where(draws.site)} calls torch.multinomial without replacement")
    noise = draws.take("uniform", (*probs.shape[:-1], num_samples), probs.dtype, exact=False)
    below = (probs / probs.sum(-1, keepdim=True)).cumsum(-1)[..., :-1]  # the last one is 1, whatever its rounding says
    return (noise[..., None] >= below[..., None, :]).sum(-1)


_LIFTED: dict[Callable[..., Any], Callable[..., Tensor]] = {
    torch.randn: _randn,
    torch.rand: _rand,
    torch.randn_like: _randn_like,
    torch.rand_like: _rand_like,
    torch.normal: _normal,
    torch.Tensor.normal_: _normal_,
    torch.Tensor.uniform_: _uniform_,
    torch.Tensor.exponential_: _exponential_,
    torch.Tensor.cauchy_: _cauchy_,
    torch.bernoulli: _bernoulli,
    torch.Tensor.bernoulli: _bernoulli,
    torch.Tensor.bernoulli_: _bernoulli_,
    torch.multinomial: _multinomial,
    torch.Tensor.multinomial: _multinomial,
}
