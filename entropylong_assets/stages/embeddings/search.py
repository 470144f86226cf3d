"""Searching the LanceDB table: which rows are nearest, then their chunks and exact similarities.

Legend: Q queries, E dimensions, K neighbours, R rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from entropylong_assets.stages.embeddings.connection import quoted, vectors_of
from entropylong_assets.stages.embeddings.exact import Block, cosines, nearest
from entropylong_assets.stages.embeddings.vector_table import FOUND, Search

PAIRS_MEASURED = 16_384
"""Vectors fetched at once to measure the results of a search (24 MiB at 384 dimensions)."""


def search_exactly(
    blocks: Iterable[Block], vectors_QE: NDArray[np.float32], limit: int, devices: Sequence[str]
) -> pl.DataFrame:
    """Return query and row number of the `limit` nearest rows per query, nearest first."""
    rows_QK, _ = nearest(vectors_QE, blocks, limit, devices)
    queries = np.repeat(np.arange(len(rows_QK)), rows_QK.shape[1])
    return pl.DataFrame({"query": queries, "row": rows_QK.reshape(-1)})


def search_by_index(
    table: Any,
    vectors_QE: NDArray[np.float32],
    limit: int,
    excluded_shards: Sequence[str],
    how: Search,
) -> pl.DataFrame:
    """Return query and row number of the rows that the index of a LanceDB table finds."""
    query: Any = table.search(vectors_QE, vector_column_name="vector")
    query = query.distance_type("cosine").limit(limit).select(["_distance"]).with_row_id(True)
    query = query.nprobes(how.nprobes)
    if how.refine_factor:
        query = query.refine_factor(how.refine_factor)
    if excluded_shards:
        query = query.where(f"shard NOT IN {quoted(excluded_shards)}", prefilter=True)
    found = pl.from_arrow(query.to_arrow())
    assert isinstance(found, pl.DataFrame)
    if "query_index" not in found.columns:  # a single query has no such column
        found = found.with_columns(pl.lit(0).alias("query_index"))
    return found.select(
        pl.col("query_index").cast(pl.Int64).alias("query"),
        pl.col("_rowid").cast(pl.Int64).alias("row"),
    )


def measure(table: Any, vectors_QE: NDArray[np.float32], found: pl.DataFrame) -> pl.DataFrame:
    """Return the chunk of each row found, and its similarity to its query; columns as `FOUND`."""
    parts = [
        _measure(table, vectors_QE, found[i : i + PAIRS_MEASURED])
        for i in range(0, len(found), PAIRS_MEASURED)
    ]
    return pl.concat(parts) if parts else pl.DataFrame(schema=FOUND)


def _measure(table: Any, vectors_QE: NDArray[np.float32], found: pl.DataFrame) -> pl.DataFrame:
    taken = table.take_row_ids(found["row"].unique().to_list())
    rows = taken.select(["chunk_id", "doc_id", "shard", "vector"]).with_row_id().to_arrow()
    vectors_RE = vectors_of(rows["vector"])
    known = pl.from_arrow(rows.drop(["vector"]))
    assert isinstance(known, pl.DataFrame)
    known = known.with_columns(pl.col("_rowid").cast(pl.Int64)).with_row_index("at")
    pairs = found.join(known, left_on="row", right_on="_rowid", maintain_order="left")
    assert len(pairs) == len(found), "every row found is in the table"
    similarity = cosines(vectors_QE[pairs["query"].to_numpy()], vectors_RE[pairs["at"].to_numpy()])
    return pairs.select("query", "chunk_id", "doc_id", "shard").with_columns(
        pl.Series("similarity", similarity)
    )
