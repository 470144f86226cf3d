"""Document filters: which documents of a batch are dropped, and why.

To add a filter, write a function that makes it from the arguments in the settings, and register it,
here or in another package:

    @DOCUMENT_FILTERS.register("few_digits")
    def few_digits(max_share: float = 0.2) -> DocumentFilter:
        def judge(documents: pl.DataFrame) -> list[Verdict]:
            text = documents["text"].str
            shares = text.count_matches("[0-9]") / text.len_chars()
            return [Dropped("digits", f"{s:.0%}") if s > max_share else None for s in shares]
        return judge

Settings then name it: `filters: [{name: digits, use: few_digits, arguments: {max_share: 0.1}}]`.
Another package declares the entry point `few_digits = "its_package.filters:few_digits"` in the
group `entropylong_assets.document_filters` instead of the decorator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import polars as pl

from entropylong_assets.settings.registry import Registry


class Dropped(NamedTuple):
    """Why a document is dropped."""

    reason: str
    """A short name, which is counted."""
    detail: str = ""
    """One line about this document."""


Verdict = Dropped | None
"""None keeps the document."""

DocumentFilter = Callable[[pl.DataFrame], Sequence[Verdict]]
"""Gets a batch of documents with the columns doc_id, text, source, external_id and metadata (JSON
text or null), and returns a verdict for each, in their order. The verdict must depend on the
document alone, not on how documents are split into batches and shards."""

DOCUMENT_FILTERS: Registry[Callable[..., DocumentFilter]] = Registry(
    "document filter",
    "entropylong_assets.document_filters",
    "entropylong_assets.stages.corpus.filters",
)
"""Functions that make a filter from its arguments, by name."""
