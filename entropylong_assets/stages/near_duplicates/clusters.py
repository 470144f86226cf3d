"""Clusters of near-duplicates: connected components of the verified pairs.

The representative of a cluster is its smallest document id. An id is the hash of a text, so the
choice depends on the texts alone: not on the order of shards, sources or runs.

A new shard can only add documents and pairs. It may add a smaller id, which becomes the new
representative of a cluster, or connect two clusters. In both cases members stay members: only a
changed setting or removed documents can end a membership.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from entropylong_assets.stages.near_duplicates.pairs import Compared, ShingleFile, frame
from entropylong_assets.stages.near_duplicates.settings import NearDuplicateSettings
from entropylong_assets.stages.near_duplicates.tables import (
    DOCUMENT_SIGNATURES,
    NEAR_DUPLICATES,
)
from entropylong_assets.storage import duck
from entropylong_assets.storage.tables import TableStore

MEMBERS = pl.Schema(NEAR_DUPLICATES.schemas["members"])

_SOURCES = """
SELECT min(source) AS source, doc_id FROM {signatures} AS signatures
SEMI JOIN wanted USING (doc_id) GROUP BY doc_id
"""
_COUNTS = """
SELECT source, count(*) AS documents
FROM (SELECT min(source) AS source FROM {signatures} GROUP BY doc_id::UUID)
GROUP BY source ORDER BY source
"""


def signature_files(store: TableStore, shards: Sequence[str]) -> str:
    """SQL that reads the signatures of these shards, of which there must be one."""
    return duck.parquet(
        [duck.file_name(store, DOCUMENT_SIGNATURES, shard, "signatures") for shard in shards]
    )


def add_sources(store: TableStore, shards: Sequence[str], candidates: pl.DataFrame) -> pl.DataFrame:
    """Add the source of each candidate: of several, the first by name."""
    if candidates.is_empty():
        return candidates.with_columns(source=pl.lit(None, pl.String))
    wanted = candidates.select("doc_id")
    with duck.querying(store, {"wanted": wanted}) as session:
        sources = frame(session, _SOURCES.format(signatures=signature_files(store, shards)))
    return candidates.join(sources, on="doc_id", how="left", maintain_order="left")


def count_documents(store: TableStore, shards: Sequence[str]) -> dict[str, int]:
    """Distinct documents with a signature, by source."""
    if not shards:
        return {}
    with duck.querying(store, {}) as session:
        rows = session.sql(_COUNTS.format(signatures=signature_files(store, shards))).fetchall()
    return dict(rows)


def thresholds_of(sources: Sequence[str], settings: NearDuplicateSettings) -> Mapping[str, float]:
    """The threshold of each source."""
    assert settings.threshold is not None
    return {s: settings.threshold_by_source.get(s, settings.threshold) for s in sources}


def find_members(
    compared: Compared, settings: NearDuplicateSettings, file: ShingleFile
) -> tuple[pl.DataFrame, int]:
    """Return the members of all clusters, sorted by doc_id, and the number of pairs that make them.

    compared: its candidates with their source. Columns as in the table `members`.
    """
    candidates = compared.candidates
    thresholds = thresholds_of(candidates["source"].unique().to_list(), settings)
    threshold_C = candidates["source"].replace_strict(thresholds, return_dtype=pl.Float32)
    values_C = threshold_C.to_numpy()
    a, b = compared.pairs[:, 0], compared.pairs[:, 1]
    kept = compared.similarities >= np.maximum(values_C[a], values_C[b])
    n = len(candidates)
    if not kept.any():
        return pl.DataFrame(schema=MEMBERS), 0
    graph = coo_array((np.ones(int(kept.sum()), np.int8), (a[kept], b[kept])), shape=(n, n))
    cluster_C = connected_components(graph, directed=False)[1]
    members = (
        candidates.with_columns(pl.Series("cluster", cluster_C))
        .with_columns(
            pl.col("number").min().over("cluster").alias("first"),
            pl.len().over("cluster").alias("cluster_size"),
        )
        .filter(pl.col("number") != pl.col("first"))
    )
    first = candidates.select(
        pl.col("number").alias("first"),
        pl.col("doc_id").alias("representative"),
        pl.col("start").alias("first_start"),
        pl.col("size").alias("first_size"),
    )
    members = members.join(first, on="first", how="left")
    places = members.select("start", "size", "first_start", "first_size")
    similarities = [file.similarity(*row) for row in places.iter_rows()]
    members = members.with_columns(pl.Series("similarity", similarities, pl.Float32))
    return members.select(MEMBERS.names()).cast(MEMBERS).sort("doc_id"), int(kept.sum())
