"""The best chunks per anchor, by vectors or by words: ranked, distinct, never of the root itself.

Legend: Q queries, E dimensions, K candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from entropylong_assets.stages.embeddings.exact import ROUNDING
from entropylong_assets.stages.embeddings.vector_table import SCORE_DIGITS

SearchTable = Callable[[NDArray[np.float32], int], pl.DataFrame]
"""(vectors_QE, limit) to a frame with the `limit` nearest chunks per query. Columns: query,
chunk_id, doc_id, shard, similarity."""

SearchText = Callable[[Sequence[str], int], pl.DataFrame]
"""(texts [Q], limit) to a frame with the `limit` best chunks per text. Columns: query, chunk_id,
doc_id, shard, score."""

COLUMNS = pl.Schema(
    {
        "query": pl.Int64,
        "rank": pl.Int32,
        "chunk_id": pl.String,
        "doc_id": pl.String,
        "similarity": pl.Float32,
    }
)

TEXT_COLUMNS = pl.Schema(
    {
        "query": pl.Int64,
        "rank": pl.Int32,
        "chunk_id": pl.String,
        "doc_id": pl.String,
        "score": pl.Float32,
    }
)

MAX_ROWS = 2**20
"""Maximum number of rows requested per search (about 150 MB of ids and similarities). The first
search of 32,768 queries fits: an exact search reads the table again for every slice of them."""


def nominate(
    search: SearchTable,
    vectors_QE: NDArray[np.float32],
    root_ids: Sequence[str],
    top_k: int,
    n_rows: int,
    max_rows: int = MAX_ROWS,
) -> pl.DataFrame:
    """Return the K most similar chunks per query, none of them from the query's own root.

    root_ids: the root of each query [Q]. n_rows: rows of the table. max_rows: maximum number of
    rows per search, unless one query alone needs more. Columns of the result: query, rank (from 1),
    chunk_id, doc_id, similarity. Equal similarities are ranked by chunk_id, so that the order of
    rows in the table does not matter. If the table has fewer than K other chunks, all are returned.
    A query whose vector is zero has no neighbours.

    Chunks of the root are removed after the search. Queries that then have too few candidates are
    searched again four times as deep, until a search returns fewer rows than requested. So are
    queries whose K-th candidate may be tied with a chunk beyond the limit: similarities closer than
    the rounding of the search count as equal.
    """
    open_queries = np.flatnonzero(vectors_QE.any(axis=1)).tolist()
    return _search_until_settled(
        lambda queries, limit: search(vectors_QE[queries], limit),
        open_queries,
        root_ids,
        top_k,
        n_rows,
        max_rows,
        _BY_SIMILARITY,
    )


def nominate_by_text(
    search: SearchText,
    texts: Sequence[str],
    root_ids: Sequence[str],
    count: int,
    n_rows: int,
    max_rows: int = MAX_ROWS,
) -> pl.DataFrame:
    """Return the `count` chunks per text with the highest BM25 score, none of the text's own root.

    The arguments, ties and repeated searches are as in `nominate`. Columns of the result: query,
    rank (from 1), chunk_id, doc_id, score. A text of which no word occurs in another document has
    no rows.
    """
    return _search_until_settled(
        lambda queries, limit: search([texts[q] for q in queries], limit),
        [q for q, text in enumerate(texts) if text],
        root_ids,
        count,
        n_rows,
        max_rows,
        _BY_SCORE,
    )


class _Order(NamedTuple):
    """The order of rows: by a column of the search's result, highest first."""

    column: str
    rounding: float
    """Values that differ by less have no defined order."""
    columns: pl.Schema
    """Columns of the result."""


_BY_SIMILARITY = _Order("similarity", ROUNDING, COLUMNS)
_BY_SCORE = _Order("score", 0.5 * 10**-SCORE_DIGITS, TEXT_COLUMNS)


def _search_until_settled(
    search: Callable[[list[int], int], pl.DataFrame],
    open_queries: list[int],
    root_ids: Sequence[str],
    top_k: int,
    n_rows: int,
    max_rows: int,
    order: _Order,
) -> pl.DataFrame:
    """Search for the queries with these numbers, each time deeper, until no result can change."""
    done: list[pl.DataFrame] = []
    limit = min(2 * top_k + 8, n_rows)
    while open_queries and n_rows:
        still_open: list[int] = []
        per_search = max(1, max_rows // limit)
        for start in range(0, len(open_queries), per_search):
            queries = open_queries[start : start + per_search]
            rows = search(queries, limit)
            ranked, settled = _ranked(rows, queries, root_ids, top_k, limit, order)
            settled = set(queries) if limit >= n_rows else settled
            done.append(ranked.filter(pl.col("query").is_in(list(settled))))
            still_open += [q for q in queries if q not in settled]
        open_queries = still_open
        limit = min(4 * limit, n_rows)
    if not done:
        return pl.DataFrame(schema=order.columns)
    return pl.concat(done).select(order.columns.names()).cast(order.columns).sort("query", "rank")


def _ranked(
    rows: pl.DataFrame,
    queries: list[int],
    root_ids: Sequence[str],
    top_k: int,
    limit: int,
    order: _Order,
) -> tuple[pl.DataFrame, set[int]]:
    """Return the K best rows per query, and the queries that a deeper search can't change."""
    numbered = pl.DataFrame(
        {
            "query": range(len(queries)),
            "number": queries,
            "root_id": [root_ids[q] for q in queries],
        },
        schema_overrides={"query": pl.Int64, "number": pl.Int64},
    )
    rows = rows.join(numbered, on="query").drop("query").rename({"number": "query"})
    depth = rows.group_by("query").agg(
        pl.len().alias("returned"), pl.col(order.column).min().alias("deepest")
    )
    ranked = (
        rows.filter(pl.col("doc_id") != pl.col("root_id"))
        .sort("query", order.column, "chunk_id", descending=[False, True, False])
        .with_columns(pl.int_range(1, pl.len() + 1).over("query").alias("rank"))
        .filter(pl.col("rank") <= top_k)
    )
    enough = (
        ranked.group_by("query")
        .agg(pl.len().alias("n"), pl.col(order.column).min().alias("worst"))
        .join(depth, on="query")
        .filter((pl.col("n") == top_k) & (pl.col("worst") > pl.col("deepest") + order.rounding))
    )["query"]
    # An index returns rows of the probed partitions only: fewer than the limit means that there are
    # no more.
    full = depth.filter(pl.col("returned") >= limit)["query"]
    return ranked, set(enough) | (set(queries) - set(full))
