"""No unlearning: the unedited model, the ceiling of every retention column."""

from __future__ import annotations

from collections.abc import Sequence

from bench.api import Card, Concept, Erasure, FitContext, UnlearningMethod


class NoUnlearning(UnlearningMethod):
    """The identity. It always runs: without its row no other row can be read."""

    card = Card(title="No unlearning", paper="", bibtex="", supports=("style", "object"), control=True)

    def fit(self, context: FitContext, concepts: Sequence[Concept]) -> Erasure:
        """An erasure without parts."""
        return Erasure()


METHOD = NoUnlearning
