"""What a rule's check answers."""

from __future__ import annotations

from onnxscript.rewriter import MatchResult


def verdict(matches: bool) -> MatchResult:
    """Return a match, or a failure."""
    result = MatchResult()
    return result if matches else result.fail("the rule's check refused it")
