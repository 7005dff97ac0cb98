"""Hostile and broken bundles, made from a good one: each is a `Case`, and all of them together are the corpus."""

from __future__ import annotations

from tests.runtime.hostile.case import Case, Folder
from tests.runtime.hostile.files import FILES
from tests.runtime.hostile.graphs import GRAPHS
from tests.runtime.hostile.manifests import MANIFESTS
from tests.runtime.hostile.operators import OPERATORS
from tests.runtime.hostile.references import REFERENCES
from tests.runtime.hostile.slices import SLICES
from tests.runtime.hostile.texts import TEXTS

CORPUS: tuple[Case, ...] = (*FILES, *TEXTS, *MANIFESTS, *OPERATORS, *SLICES, *GRAPHS, *REFERENCES)

__all__ = ["CORPUS", "Case", "Folder"]
