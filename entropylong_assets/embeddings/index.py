"""One owner for each document, an index over all chunks, and its measured recall.

Legend: Q queries, E dimensions, K neighbours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from entropylong_assets.embeddings.embedder import Embedder
from entropylong_assets.embeddings.table import ChunkTable
from entropylong_assets.settings import Settings
from entropylong_assets.storage.tables import PartitionWriter, TableError, TableStore


def find_duplicates(store: TableStore, positions: Mapping[str, int]) -> pl.DataFrame:
    """Documents that stand in several shards, and the shard whose copy counts.

    `positions`: place in the plan of each shard that is indexed. The owner is the shard that was
    registered first, so that it depends on nothing but the plan. Columns as in the table
    `duplicates`: doc_id, shard, owner, n_chunks.
    """
    parts = []
    for shard, position in positions.items():
        documents = store.read("chunk_embeddings", shard, "chunks", ["doc_id"])
        parts.append(
            documents.group_by("doc_id")
            .agg(pl.len().cast(pl.Int32).alias("n_chunks"))
            .with_columns(pl.lit(shard).alias("shard"), pl.lit(position).alias("position"))
        )
    if not parts:
        return pl.DataFrame(schema=["doc_id", "shard", "owner", "n_chunks"])
    copies = pl.concat(parts).filter(pl.len().over("doc_id") > 1)
    owner = pl.col("shard").sort_by("position").first().over("doc_id")
    return (
        copies.with_columns(owner.alias("owner"))
        .filter(pl.col("shard") != pl.col("owner"))
        .select("doc_id", "shard", "owner", "n_chunks")
        .sort("doc_id", "shard")
    )


def drop_duplicates(table: ChunkTable, duplicates: pl.DataFrame) -> None:
    """Takes the copies that don't count out of the table."""
    for (shard,), copies in duplicates.group_by("shard", maintain_order=True):
        table.delete_documents(str(shard), copies["doc_id"].to_list())


def sample_queries(
    table: ChunkTable, count: int, seed: int
) -> tuple[list[str], NDArray[np.float32]]:
    """`count` rows of the table chosen by hash: their ids, and their vectors, float32 [Q, E]."""

    def rank(chunk_id: str) -> bytes:
        return hashlib.sha256(f"{seed}:recall:{chunk_id}".encode()).digest()

    kept: list[tuple[bytes, str, list[float]]] = []
    for batch in table.scan(["chunk_id", "vector"]):
        kept += [(rank(c), c, v) for c, v in batch.iter_rows()]
        kept = sorted(kept, key=lambda row: row[:2])[:count]
    return [c for _, c, _ in kept], np.asarray([v for *_, v in kept], np.float32)


def exact_similarities(
    table: ChunkTable, vectors_QE: NDArray[np.float32], k: int
) -> NDArray[np.float32]:
    """Similarities of the K nearest chunks of each query, float32 [Q, K], by plain products.

    Reads the table in blocks: independent of the index and of the table's own search.
    """
    best_QK = np.full((len(vectors_QE), 0), -np.inf, np.float32)
    for batch in table.scan(["vector"]):
        block_BE = np.asarray(batch["vector"].to_list(), np.float32)
        joined = np.concatenate([best_QK, vectors_QE @ block_BE.T], axis=1)
        best_QK = -np.sort(-joined, axis=1)[:, :k]
    return best_QK


def measure_recall(
    table: ChunkTable, vectors_QE: NDArray[np.float32], k: int, nprobes: int | None
) -> float:
    """Recall@K of the table's search: the share of true neighbours that it finds.

    A hit counts when it is as near as the true K-th neighbour, so that ties don't count as loss.
    """
    if not len(vectors_QE):
        return 1.0
    exact_QK = exact_similarities(table, vectors_QE, k)
    found = table.search(vectors_QE, exact_QK.shape[1], nprobes=nprobes)
    hits = 0
    for query, worst in enumerate(exact_QK[:, -1]):
        similarities = found.filter(pl.col("query") == query)["similarity"]
        hits += int((similarities >= worst - 1e-5).sum())
    return hits / exact_QK.size


def steer_probes(
    table: ChunkTable, vectors_QE: NDArray[np.float32], k: int, target: float, partitions: int
) -> tuple[int, float]:
    """Fewest probes, by doubling, that reach the target recall, and the recall measured there."""
    probes = 1
    while True:
        recall = measure_recall(table, vectors_QE, k, probes)
        if recall >= target or probes >= partitions:
            return probes, recall
        probes = min(2 * probes, partitions)


def index_shards(
    store: TableStore,
    settings: Settings,
    embedder: Embedder,
    positions: Mapping[str, int],
    versions: Mapping[str, str],
    tag: str,
    writer: PartitionWriter,
) -> dict[str, Any]:
    """Brings the table in order, tags it, and measures its recall; returns the summary.

    versions: data version of each shard to be indexed. Raises TableError where the table does
    not hold the rows that a shard's manifest counts.
    """
    table = ChunkTable(settings.data_uri, embedder.dimension, embedder.identity)
    order = {shard: positions[shard] for shard in sorted(versions, key=positions.__getitem__)}
    duplicates = find_duplicates(store, order)
    drop_duplicates(table, duplicates)
    there = table.rows_by_shard()
    taken = dict(duplicates.group_by("shard").agg(pl.col("n_chunks").sum()).iter_rows())
    shards = []
    for shard, position in order.items():
        rows = store.require("chunk_embeddings", shard).tables["chunks"].rows - taken.get(shard, 0)
        if there.get(shard, 0) != rows:
            raise TableError(
                f"LanceDB table: it holds {there.get(shard, 0)} rows of shard {shard} where "
                f"{rows} were written; materialise chunk_embeddings for {shard} again"
            )
        shards.append(
            {
                "shard": shard,
                "position": position,
                "data_version": versions[shard],
                "n_chunks": rows,
            }
        )
    writer.append("shards", shards)
    writer.append("duplicates", duplicates)
    table.optimise()
    n_rows = sum(row["n_chunks"] for row in shards)
    search: dict[str, Any] = {"search": "exact", "nprobes": None}
    chosen, vectors_QE = sample_queries(table, settings.embedding.recall_queries, settings.seed)
    k = min(settings.retrieval.top_k, max(n_rows, 1))
    if n_rows >= settings.embedding.ann_min_rows:
        table.build_index(embedder.dimension)
        target = settings.embedding.target_recall
        probes, recall = steer_probes(table, vectors_QE, k, target, round(n_rows**0.5))
        search = {"search": "ivf_flat", "nprobes": probes}
    else:
        recall = measure_recall(table, vectors_QE, k, None)
    return {
        "tag": tag,
        "table_version": table.tag(tag),
        "n_rows": n_rows,
        "n_shards": len(shards),
        "duplicate_documents": len(duplicates),
        "excluded_shards": sorted(set(there) - set(order)),
        **search,
        "recall": recall,
        "recall_k": k,
        "recall_queries": len(chosen),
    }
