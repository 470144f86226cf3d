"""When a table gets an index, and how large its parts are."""

from __future__ import annotations

from entropylong_assets.stages.embeddings.settings import EmbeddingSettings

MIN_ROWS_PER_PARTITION = 32
"""A segment with fewer rows per partition is joined with the rows that are indexed next. So an
index over n rows has at most √n / 32 larger segments and one smaller, if its √n centroids were
trained on n rows."""


def partitions(rows: int) -> int:
    """Number of partitions of an index over so many rows."""
    return max(1, round(rows**0.5))


def min_indexed_rows(settings: EmbeddingSettings) -> int | None:
    """Rows from which a table gets an index; None if it gets none. 256 are needed to train one."""
    if settings.search == "exact":
        return None
    return settings.ann_min_rows if settings.search == "auto" else 256


def searched_by_index(settings: EmbeddingSettings, n_rows: int) -> bool:
    """Whether a table of this many rows gets an index."""
    fewest = min_indexed_rows(settings)
    return fewest is not None and n_rows >= fewest
