"""An index over all chunks, each document once, and its measured recall.

Legend: Q queries, E dimensions, K neighbours.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.embeddings.exact import devices_of, nearest
from entropylong_assets.stages.embeddings.index_size import searched_by_index
from entropylong_assets.stages.embeddings.removal import (
    delete_documents,
    find_removal,
    remove_retired_shards,
    restore_documents,
)
from entropylong_assets.stages.embeddings.segments import Segments
from entropylong_assets.stages.embeddings.settings import EmbeddingSettings
from entropylong_assets.stages.embeddings.shard_commits import ShardConflictError
from entropylong_assets.stages.embeddings.tables import (
    CHUNK_EMBEDDINGS,
    EMBEDDING_INDEX,
    EmbeddingIndexSummary,
    IndexFigures,
)
from entropylong_assets.stages.embeddings.vector_table import (
    Search,
    VectorTable,
    WritableVectorTable,
)
from entropylong_assets.storage.manifest import TableError
from entropylong_assets.storage.partition_writer import PartitionWriter
from entropylong_assets.storage.tables import TableStore

if TYPE_CHECKING:
    from entropylong_assets.stages.embeddings.embedder import Embedder


def sample_queries(
    table: VectorTable, count: int, seed: int
) -> tuple[list[str], NDArray[np.float32]]:
    """Choose `count` rows of the table by hash; return their ids and vectors, float32 [Q, E].

    These are stored chunks, not the windows around anchors that are searched for later: those are
    shorter, and their recall may be lower.
    """

    def rank(chunk_id: str) -> bytes:
        return hashlib.sha256(f"{seed}:recall:{chunk_id}".encode()).digest()

    kept: list[tuple[bytes, str]] = []
    for batch in table.scan(["chunk_id"]):
        drawn = ((rank(chunk_id), chunk_id) for chunk_id in batch["chunk_id"])
        kept = heapq.nsmallest(count, itertools.chain(kept, drawn))
    ids = list(dict.fromkeys(chunk_id for _, chunk_id in kept))
    rows = table.fetch(ids, ["chunk_id", "vector"]) if ids else None
    if rows is None:
        return [], np.zeros((0, 1), np.float32)
    vectors = dict(rows.select("chunk_id", "vector").iter_rows())
    return ids, np.asarray([vectors[chunk_id] for chunk_id in ids], np.float32)


def measure_recall(
    table: VectorTable,
    vectors_QE: NDArray[np.float32],
    k: int,
    how: Search,
    worst_Q: NDArray[np.float32],
    own_ids: Sequence[str] = (),
) -> float:
    """Measure recall@K of a search: the share of true neighbours that it finds.

    worst_Q: similarity of each query's true K-th neighbour. A hit counts if it is as near as that,
    so that ties don't lower the recall. own_ids [Q]: the queries' own chunks, if they are rows of
    the table. Each finds itself with one probe, so K + 1 rows are searched and it is left out.
    """
    if not len(vectors_QE):
        return 1.0
    found = table.search(vectors_QE, k + 1 if own_ids else k, how=how)
    queries = found["query"].to_numpy()
    near = found["similarity"].to_numpy() >= worst_Q[queries] - 1e-5
    hits_Q = np.bincount(queries[near], minlength=len(vectors_QE))
    if own_ids:
        own = found["chunk_id"].to_numpy() == np.asarray(own_ids)[queries]
        hits_Q -= np.bincount(queries[own], minlength=len(vectors_QE)) > 0
    return float(np.minimum(hits_Q, k).sum() / (len(vectors_QE) * k))


def true_worst(
    table: VectorTable, vectors_QE: NDArray[np.float32], k: int, device: str
) -> NDArray[np.float32]:
    """Return the similarity of the K-th nearest chunk of each query, float32 [Q], exactly.

    A query that is a row of the table is its own nearest: pass K + 1 then.
    """
    if not len(vectors_QE):
        return np.zeros(0, np.float32)
    return nearest(vectors_QE, table.vectors(), k, devices_of(device))[1][:, -1]


_MOST_REFINED = 64


def steer(
    measure: Callable[[Search], float], kind: str, target: float, partitions: int
) -> tuple[Search, float]:
    """Find a search whose measured recall reaches the target; return it and that recall.

    Starts with one probe and no refinement. Each step doubles the probes or, if the index holds
    vectors in part only, the refine factor, whichever raises the recall more, whatever it costs.
    Ends at the maximum of both: then the recall is the best that this index can give.
    """
    partial = kind != "ivf_flat"
    search = Search(kind, 1)
    recall = measure(search)
    while recall < target:
        tried = []
        if (search.nprobes or 0) < partitions:
            tried.append(search._replace(nprobes=min(2 * (search.nprobes or 1), partitions)))
        if partial and (search.refine_factor or 0) < _MOST_REFINED:
            tried.append(search._replace(refine_factor=2 * (search.refine_factor or 1)))
        if not tried:
            break
        measured = [(measure(other), other) for other in tried]
        recall, search = max(measured, key=lambda found: found[0])
    return search, recall


def index_shards(
    store: TableStore,
    settings: Settings,
    table: WritableVectorTable,
    positions: Mapping[str, int],
    versions: Mapping[str, str],
    tag: str,
    writer: PartitionWriter,
    embedder: Embedder | None = None,
) -> EmbeddingIndexSummary:
    """Index and tag the table without retired shards, copies and near-duplicates; measure recall.

    settings: of the corpus. positions: place in the plan of each shard. versions: data version of
    each shard to be indexed. embedder: for documents that come back; without it none does. Raises
    TableError if the table does not hold the rows that a shard's manifest counts.
    """
    embedding = settings.embedding
    order = {shard: positions[shard] for shard in sorted(versions, key=positions.__getitem__)}
    removal = find_removal(store, order)
    restored = 0
    if embedder is not None:
        min_chars = embedding.min_chunk_chars
        restored = restore_documents(store, table, removal, [*order], embedder, min_chars)
    delete_documents(table, removal)
    counted, counted_at = table.rows_by_shard(), table.version
    stored = remove_retired_shards(store, table, counted)
    shards = _count_rows(store, order, versions, removal.documents, stored)
    writer.append("shards", shards)
    writer.append("duplicates", removal.duplicates)
    writer.append("near_copies", removal.near_copies)
    table.drop_text_index()  # optimizing would add rows to an index that is built again
    table.optimize()
    n_rows = sum(row["n_chunks"] for row in shards)
    table.index_for_lookup()
    if embedding.text_index:
        table.build_text_index()
    k = min(embedding.recall_k, max(n_rows - 1, 1))
    segments = None
    if searched_by_index(embedding, n_rows):
        segments = table.complete_index(
            embedding.index, embedding.index_generation, embedding.device
        )
    written = table.shards_written(counted_at) - (counted.keys() - stored.keys())
    _refuse_rewritten(written & order.keys())
    excluded = sorted({*stored, *written} - order.keys())
    writer.append("sample", table.sample_chunks(excluded))
    figures = IndexFigures()
    if segments is not None:
        new = _when_new(store, segments, embedding.index, k)
        figures = measure_index(table, segments, settings, k, new)
    return EmbeddingIndexSummary(
        tag=tag,
        table_version=table.tag(tag),
        n_rows=n_rows,
        n_shards=len(shards),
        duplicate_documents=len(removal.duplicates),
        near_duplicate_documents=len(removal.near_copies),
        restored_documents=restored,
        excluded_shards=excluded,
        recall_k=k,
        **figures.model_dump(),
        text_index=embedding.text_index,
    )


def measure_index(
    table: VectorTable,
    segments: Segments,
    settings: Settings,
    k: int,
    new: tuple[Search, float] | None,
) -> IndexFigures:
    """Steer the search of an index to its target recall, and measure what its centroids still give.

    new: the search that sufficed when the centroids were new, and its recall; None if they are.
    """
    embedding: EmbeddingSettings = settings.embedding
    chosen, vectors_QE = sample_queries(table, embedding.recall_queries, settings.seed)
    worst_Q = true_worst(table, vectors_QE, k + 1, embedding.device)

    def measure(how: Search) -> float:
        return measure_recall(table, vectors_QE, k, how, worst_Q, chosen)

    centroids = segments.centroids
    search, recall = steer(
        measure, embedding.index, embedding.target_recall, len(centroids.vectors_PE)
    )
    if new is None:
        new = (search, recall)
    return IndexFigures(
        search=search.search,
        nprobes=search.nprobes,
        refine_factor=search.refine_factor,
        recall=recall,
        recall_queries=len(chosen),
        segments=segments.number,
        rows_added=segments.rows_added,
        centroids=centroids.identity,
        centroid_rows=centroids.rows,
        nprobes_when_new=new[0].nprobes,
        refine_factor_when_new=new[0].refine_factor,
        recall_when_new=new[1],
        recall_unsteered=recall if new[0] == search else measure(new[0]),
    )


def _when_new(
    store: TableStore, segments: Segments, kind: str, k: int
) -> tuple[Search, float] | None:
    """The search that sufficed when these centroids were new, and its recall@K then.

    As the last index recorded it; None if there was none with these centroids.
    """
    index = store.manifest(EMBEDDING_INDEX)
    if index is None or index.summary.get("centroids") != segments.centroids.identity:
        return None
    last = EmbeddingIndexSummary.model_validate(index.summary)
    if (last.search, last.recall_k) != (kind, k):
        return None
    search = Search(kind, last.nprobes_when_new, last.refine_factor_when_new)
    return search, last.recall_when_new


def _refuse_rewritten(shards: Collection[str]) -> None:
    """Raise an error that is retried if shards were written while they were being indexed.

    Their tables and their vectors may be of different contents.
    """
    if shards:
        raise ShardConflictError(
            f"LanceDB table: commit conflict: shard {min(shards)} was written while the index was "
            f"made ({len(shards)} such shards); materialize embedding_index again"
        )


def _count_rows(
    store: TableStore,
    positions: Mapping[str, int],
    versions: Mapping[str, str],
    removed: pl.DataFrame,
    stored: Mapping[str, int],
) -> list[dict[str, Any]]:
    """Rows of the table `shards`. stored: rows of each shard in the vector table.

    Raises TableError if a shard has other rows there than were written, apart from removed ones.
    """
    rows_removed = dict(removed.group_by("shard").agg(pl.col("n_chunks").sum()).iter_rows())
    shards = []
    for shard, position in positions.items():
        written = store.require(CHUNK_EMBEDDINGS, shard).tables["chunks"].rows
        rows = written - rows_removed.get(shard, 0)
        if stored.get(shard, 0) != rows:
            raise TableError(
                f"LanceDB table: it holds {stored.get(shard, 0)} rows of shard {shard}, but "
                f"{rows} were written; materialize {CHUNK_EMBEDDINGS.name} for {shard} again"
            )
        shards.append(
            {
                "shard": shard,
                "position": position,
                "data_version": versions[shard],
                "n_chunks": rows,
            }
        )
    return shards
