"""Top-K candidates of each anchor: ranked, distinct, never of the root itself.

Legend: Q queries, E dimensions, K candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from entropylong_assets.stages.embeddings.exact import ROUNDING

SearchTable = Callable[[NDArray[np.float32], int], pl.DataFrame]
"""(vectors_QE, limit) to columns query, chunk_id, doc_id, shard, similarity."""

COLUMNS = pl.Schema(
    {
        "query": pl.Int64,
        "rank": pl.Int32,
        "chunk_id": pl.String,
        "doc_id": pl.String,
        "similarity": pl.Float32,
    }
)


ROWS_A_SEARCH = 2**20
"""Most rows that one search is asked for (some 150 MB of names and similarities): the first search
of a call's 32,768 queries fits whole, since an exact one reads the table again for every slice.
"""


def nominate(
    search: SearchTable,
    vectors_QE: NDArray[np.float32],
    root_ids: Sequence[str],
    top_k: int,
    n_rows: int,
    most_rows: int = ROWS_A_SEARCH,
) -> pl.DataFrame:
    """The K most similar chunks of each query, none of them from the query's own root.

    root_ids: the root of each query [Q]. n_rows: rows of the table. Columns: query, rank (from
    1), chunk_id, doc_id, similarity. Equal similarities are ranked by chunk_id, so that the order
    of rows in the table does not matter. Where the table holds fewer than K other chunks, all
    are given.

    Chunks of the root are filtered after the search; queries left with too few candidates, or
    with a tie at the border that may have been cut (a search tells no two apart that are nearer
    than its rounding), are searched again four times as deep, until a search gives fewer rows
    than it was asked for. The deeper, the fewer at once: at most `most_rows` rows, or one query.
    """
    done: list[pl.DataFrame] = []
    open_queries = list(range(len(root_ids)))
    limit = min(2 * top_k + 8, n_rows)
    while open_queries and n_rows:
        still_open: list[int] = []
        together = max(1, most_rows // limit)
        for start in range(0, len(open_queries), together):
            queries = open_queries[start : start + together]
            found = search(vectors_QE[queries], limit)
            ranked, settled = _ranked(found, queries, root_ids, top_k, limit)
            settled = set(queries) if limit >= n_rows else settled
            done.append(ranked.filter(pl.col("query").is_in(list(settled))))
            still_open += [q for q in queries if q not in settled]
        open_queries = still_open
        limit = min(4 * limit, n_rows)
    if not done:
        return pl.DataFrame(schema=COLUMNS)
    return pl.concat(done).select(COLUMNS.names()).cast(COLUMNS).sort("query", "rank")


def _ranked(
    found: pl.DataFrame, queries: list[int], root_ids: Sequence[str], top_k: int, limit: int
) -> tuple[pl.DataFrame, set[int]]:
    """The K best of what one search found, and the queries that a deeper one would not change."""
    asked = pl.DataFrame(
        {
            "query": range(len(queries)),
            "asked": queries,
            "root_id": [root_ids[q] for q in queries],
        },
        schema_overrides={"query": pl.Int64, "asked": pl.Int64},
    )
    found = found.join(asked, on="query").drop("query").rename({"asked": "query"})
    depth = found.group_by("query").agg(
        pl.len().alias("given"), pl.col("similarity").min().alias("deepest")
    )
    ranked = (
        found.filter(pl.col("doc_id") != pl.col("root_id"))
        .sort("query", "similarity", "chunk_id", descending=[False, True, False])
        .with_columns(pl.int_range(1, pl.len() + 1).over("query").alias("rank"))
        .filter(pl.col("rank") <= top_k)
    )
    enough = (
        ranked.group_by("query")
        .agg(pl.len().alias("n"), pl.col("similarity").min().alias("worst"))
        .join(depth, on="query")
        .filter((pl.col("n") == top_k) & (pl.col("worst") > pl.col("deepest") + ROUNDING))
    )["query"]
    # An index gives the rows of its probes, which may be fewer, or none: there are no more.
    full = depth.filter(pl.col("given") >= limit)["query"]
    return ranked, set(enough) | (set(queries) - set(full))
