"""Settings of the search for near-duplicates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from entropylong_assets.settings.section import Section

LOWEST = 0.4
"""Lowest threshold: below it the bands of a signature no longer nominate enough pairs."""

Threshold = Annotated[float, Field(ge=LOWEST, le=1)]


class NearDuplicateSettings(Section):
    """`document_signatures` and `near_duplicates`."""

    threshold: Threshold | None = 0.7
    """Jaccard similarity of the sets of shingles from which two documents are near-duplicates;
    none: documents are not compared."""
    threshold_by_source: Mapping[str, Threshold] = {}
    """Threshold for single sources, by name. For documents of two sources the higher one holds."""
    shingle_words: int = Field(3, ge=1, le=16)
    """Adjacent words per shingle. Fewer tolerate more edits; more tell common phrases apart."""

    @property
    def lowest_threshold(self) -> float | None:
        """The lowest threshold of any source; None if documents are not compared."""
        if self.threshold is None:
            return None
        return min(self.threshold, *self.threshold_by_source.values(), 1.0)
