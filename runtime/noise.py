"""Standard normal noise, identical to PyTorch's CPU generator, in NumPy.

`torch.manual_seed(seed); torch.randn(n)` draws from the Mersenne Twister MT19937 (Matsumoto & Nishimura, 1998), seeded
with the low 32 bits of the seed, and turns uniform numbers into normal ones by the Box-Muller transform (Box & Muller,
1958). From 16 values on, it uses 24-bit uniforms in blocks of 16, eight radii and eight angles; if the last block is
not full, the last 16 values are drawn again. Below 16 values it uses 53-bit uniforms in pairs, and keeps the second
value of a pair for the next draw.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .inputs import MAX_COUNT, count

_MAX_SEED = 2**64 - 1
_BLOCK = 16
_HALF = np.dtype("V32")
"""Half a block, eight float32, copied as one item: NumPy's loops over eight values are mostly overhead."""
_CHUNK = 4096 * _BLOCK
"""Values drawn at once: keeps the intermediate arrays in cache."""


class Noise:
    """A stream of standard normal values: what `torch.Generator().manual_seed(seed)` gives on the CPU.

    Consecutive draws give what consecutive calls of `torch.randn` with that generator give.

    Args:
        seed: From 0 to 2**64 - 1; like PyTorch's generator, the stream depends on its low 32 bits.

    Raises:
        InputError: `seed` is missing, not an integer, or out of range.
    """

    def __init__(self, seed: int | None) -> None:
        if seed is None:
            raise InputError("a seed is needed, an integer like seed=0; the same seed gives the same numbers")
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
            raise InputError(f"seed must be an integer, got {type(seed).__name__}")
        seed = int(seed)
        if not 0 <= seed <= _MAX_SEED:
            raise InputError(f"seed must be between 0 and 2**64 - 1, got {seed}")
        # RandomState's integer seeding is MT19937's own, and NumPy keeps it fixed for good.
        self._twister = np.random.MT19937(_no_entropy())
        np.random.RandomState(self._twister).seed(seed & 0xFFFFFFFF)
        self._second: float | None = None

    def standard_normal(self, shape: Sequence[int]) -> NDArray[np.float32]:
        """Draw values of N(0, 1), float32, as `torch.randn(shape)` would; equal to it within float32 rounding.

        Raises:
            InputError: `shape` is no shape.
        """
        if not isinstance(shape, (tuple, list)):
            raise InputError(f"shape must be a tuple or a list of integers, got {type(shape).__name__}")
        lengths = tuple(count("shape", length, MAX_COUNT) for length in shape)
        if math.prod(filter(None, lengths)) > MAX_COUNT:  # beside a length of 0 too, NumPy knows no more
            raise InputError(f"shape must be of at most {MAX_COUNT} values, got {lengths}; draw them in parts")
        size = math.prod(lengths)
        values = self._pairs(size) if size < _BLOCK else self._blocks(size)
        return values.reshape(lengths)

    def uniform(self, size: int) -> NDArray[np.float32]:
        """Draw values of U[0, 1), float32, as `torch.rand(size)` would.

        Raises:
            InputError: `size` is no integer, negative, or larger than an array can be.
        """
        return self._uniforms24(count("size", size, MAX_COUNT))

    def _blocks(self, size: int) -> NDArray[np.float32]:
        values = np.empty(size, np.float32)
        for start in range(0, size, _CHUNK):
            part = values[start : start + _CHUNK]
            rest = len(part) % _BLOCK
            if rest == 0:
                _box_muller(self._uniforms24(len(part)), part)
                continue
            # The last block is not full: its uniforms are drawn and go unused, and 16 more make the last 16 values.
            uniforms = self._uniforms24(len(part) + _BLOCK)
            whole = len(part) - rest
            _box_muller(uniforms[:whole], part[:whole])
            _box_muller(uniforms[-_BLOCK:], values[-_BLOCK:])
        return values

    def _uniforms24(self, size: int) -> NDArray[np.float32]:
        """Uniform values in [0, 1) with 24 bits, one 32-bit output each."""
        bits = self._words(size)
        bits &= np.uint32(0xFFFFFF)
        values = bits.view(np.int32).astype(np.float32)  # signed integers convert faster
        values *= np.float32(2**-24)
        return values

    def _pairs(self, size: int) -> NDArray[np.float32]:
        values = np.empty(size, np.float32)
        for index in range(size):
            values[index] = self._next_of_pair()
        return values

    def _next_of_pair(self) -> float:
        if self._second is not None:
            value, self._second = self._second, None
            return value
        angle = 2 * math.pi * self._uniform53()
        radius = math.sqrt(-2 * math.log1p(-self._uniform53()))
        self._second = radius * math.sin(angle)
        return radius * math.cos(angle)

    def _uniform53(self) -> float:
        """A uniform value in [0, 1) with 53 bits, from two 32-bit outputs."""
        high, low = (int(word) for word in self._words(2))
        return float(((high << 32) | low) & (2**53 - 1)) * 2.0**-53

    def _words(self, size: int) -> NDArray[np.uint32]:
        return self._twister.random_raw(size).astype(np.uint32)


def stream_of(seed: int | Noise | None) -> Noise:
    """Return the stream that a seed names; or the given stream, from which each call draws on.

    Raises:
        InputError: There is no seed, or it is not an integer or out of range.
    """
    return seed if isinstance(seed, Noise) else Noise(seed)


@functools.cache
def _no_entropy() -> Any:
    """Return a seed for a generator that is reseeded at once: NumPy's own mixing would be most of a small draw's time.

    Made when first needed, because `import numpy` does not load `numpy.random`.
    """

    class Ones(np.random.bit_generator.ISeedSequence):
        def generate_state(self, n_words: int, _dtype: object = np.uint32) -> NDArray[np.uint32]:
            return np.ones(n_words, np.uint32)

    return Ones()


def _box_muller(uniforms: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Turn uniform values, a whole number of blocks, into normal ones, and write them into `out`."""
    halves = uniforms.view(_HALF).reshape(-1, 2)
    radius, angle = (half.copy().view(np.float32) for half in halves.T)
    np.log(np.subtract(np.float32(1), radius, out=radius), out=radius)
    radius *= np.float32(-2)
    np.sqrt(radius, out=radius)
    angle *= np.float32(2 * math.pi)
    normal = out.view(_HALF).reshape(-1, 2)
    for place, function in enumerate((np.cos, np.sin)):
        half = function(angle)
        half *= radius
        normal[:, place] = half.view(_HALF)
