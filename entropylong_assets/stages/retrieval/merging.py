"""Candidates of both searches as one list per anchor.

A chunk has the rank of its cosine, whichever search found it: with an exact search by vector the K
nearest chunks have the ranks 1 to K, and those that only their words nominate follow.

Legend: P pairs of query and chunk, Q queries, E dimensions.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from entropylong_assets.stages.embeddings.exact import cosines
from entropylong_assets.stages.embeddings.vector_table import VectorTable
from entropylong_assets.stages.retrieval.search import COLUMNS

BY_VECTOR, BY_TEXT, BY_BOTH = "vector", "text", "both"

CANDIDATES = pl.Schema({**COLUMNS, "found_by": pl.String()})

_PAIRS_AT_ONCE = 16_384
"""Vectors fetched at once (24 MiB at 384 dimensions)."""


def merge_candidates(by_vector: pl.DataFrame, by_text: pl.DataFrame) -> pl.DataFrame:
    """Return the chunks of both searches, each once per query, ranked by similarity.

    by_vector, by_text: query, chunk_id, doc_id, similarity. Equal similarities are ranked by
    chunk_id. Columns of the result: as `CANDIDATES`.
    """
    columns = ["query", "chunk_id", "doc_id", "similarity"]
    candidates = pl.concat(
        [
            by_vector.select(*columns, pl.lit(BY_VECTOR).alias("found_by")),
            by_text.select(*columns, pl.lit(BY_TEXT).alias("found_by")),
        ]
    )
    by = pl.when(pl.len() == 2).then(pl.lit(BY_BOTH)).otherwise(pl.col("found_by").first())
    return (
        candidates.group_by("query", "chunk_id", maintain_order=True)
        .agg(pl.col("doc_id", "similarity").first(), by.alias("found_by"))
        .sort("query", "similarity", "chunk_id", descending=[False, True, False])
        .with_columns(pl.int_range(1, pl.len() + 1).over("query").alias("rank"))
        .select(CANDIDATES.names())
        .cast(CANDIDATES)
    )


def add_similarity(
    pairs: pl.DataFrame, vectors_QE: NDArray[np.float32], table: VectorTable
) -> pl.DataFrame:
    """Add the cosine of query and chunk: 0 if the query's vector is zero.

    pairs: query (row of vectors_QE) and chunk_id.
    """
    parts = [
        _similarities(part, vectors_QE, table) for part in pairs.iter_slices(_PAIRS_AT_ONCE)
    ] or [pl.Series([], dtype=pl.Float32)]
    return pairs.with_columns(pl.concat(parts).alias("similarity"))


def _similarities(
    pairs: pl.DataFrame, vectors_QE: NDArray[np.float32], table: VectorTable
) -> pl.Series:
    chunks = table.fetch(pairs["chunk_id"].unique().sort().to_list(), ["chunk_id", "vector"])
    at = chunks.select("chunk_id").with_row_index("at")
    rows_P = pairs.join(at, on="chunk_id", how="left", maintain_order="left")["at"].to_numpy()
    queries_PE = vectors_QE[pairs["query"].to_numpy()]
    is_zero_P = ~queries_PE.any(axis=1)
    similarities_P = cosines(
        np.where(is_zero_P[:, None], np.float32(1), queries_PE),
        chunks["vector"].to_numpy()[rows_P],
    )
    return pl.Series(np.where(is_zero_P, np.float32(0), similarities_P))
