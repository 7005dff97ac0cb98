"""What a fuzz target is."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple


class Target(NamedTuple):
    """What is fuzzed.

    Args:
        check: Hands bytes to the code; raises what nobody documented, or that an answer is wrong.
        seeds: Whole inputs, with which a fuzzer begins.
        words: What inputs are made of.
    """

    check: Callable[[bytes], None]
    seeds: Sequence[bytes]
    words: Sequence[bytes] = ()


def mutations(target: Target, count: int, seed: int = 0) -> Iterator[bytes]:
    """Yield seeds with damage: bits flipped, bytes set, parts cut out, doubled, or swapped for a word."""
    dice = random.Random(seed)  # noqa: S311 - the same damage at each run is the point
    words = [*target.words, b"", b"\0", b"\xff" * 4, b"-1", b"9" * 20]
    for _ in range(count):
        data = bytearray(dice.choice(target.seeds))
        for _ in range(dice.choice((1, 1, 2, 5))):
            at = dice.randrange(len(data) + 1)
            until = min(at + dice.choice((1, 2, 4, 16, 100)), len(data))
            part = bytes(data[at:until])
            flipped = bytes([part[0] ^ 1 << dice.randrange(8)]) + part[1:] if part else b""
            data[at:until] = dice.choice((flipped, b"", part * 2, dice.choice(words), dice.randbytes(len(part))))
        yield bytes(data)
