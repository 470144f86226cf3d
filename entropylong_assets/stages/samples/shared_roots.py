"""Roots of one shard that are also roots in another shard.

A document can occur in several shards. The index assigns it to one of them, and retrieval drops it
as a root in the others. So a root can only be in two shards if their candidates were searched in
different indexes, or in one that does not cover both. To find such a root it is enough to read the
shards that can contain one of this shard's roots: the index lists every document that occurs in
several of its shards. A check of one shard thus reads as many tables as its roots have copies,
however many shards there are.

Limitation: if another shard's documents have changed since it was indexed, its own check finds the
root, not the check of this shard.
"""

from __future__ import annotations

from collections.abc import Collection

import polars as pl

from entropylong_assets.stages.embeddings.tables import CHUNK_EMBEDDINGS, EMBEDDING_INDEX
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.stage import Partition
from entropylong_assets.storage.tables import WHOLE, TableStore

ROWS_PER_BATCH = 2**16

SCHEMA = pl.Schema({"root_id": pl.String, "shard": pl.String, "sample_id": pl.String})


def roots_of_other_shards(partition: Partition) -> pl.DataFrame:
    """Find where else the roots of this partition's samples are roots.

    Columns as in SCHEMA, one row per root and sample. Raises TableError if a table is damaged.
    """
    store, shard = partition.store, partition.shard
    own = frozenset(_packed_roots(store, shard)["root_id"])
    parts = [pl.DataFrame(schema=SCHEMA)]
    for other in shards_to_compare(partition, own) if own else ():
        roots = _packed_roots(store, other).filter(pl.col("root_id").is_in(list(own)))
        parts.append(roots.select("root_id", pl.lit(other).alias("shard"), "sample_id"))
    return pl.concat(parts).sort("root_id", "sample_id")


def shards_to_compare(partition: Partition, root_ids: Collection[str]) -> list[str]:
    """Return the other shards whose samples can contain one of these roots, sorted.

    These are the shards that hold a copy according to the index, and those that the index does not
    cover. If it does not cover the present data of this shard: all shards with samples.
    """
    store, shard = partition.store, partition.shard
    others = set(store.shards(LONG_CONTEXT_SAMPLES)) - {shard}
    embedded = store.manifest(CHUNK_EMBEDDINGS, shard)
    indexed = _indexed_versions(store)
    if embedded is None or indexed.get(shard) != embedded.data_version:
        return sorted(others)
    holders: set[str] = set()
    for batch in store.batches(
        EMBEDDING_INDEX, WHOLE, "duplicates", ["doc_id", "shard", "owner"], ROWS_PER_BATCH
    ):
        copies = batch.filter(pl.col("doc_id").is_in(list(root_ids)))
        holders.update(copies["shard"], copies["owner"])
    return sorted(other for other in others if other in holders or other not in indexed)


def _indexed_versions(store: TableStore) -> dict[str, str]:
    """Data version of the chunk embeddings that are indexed, by shard."""
    if store.manifest(EMBEDDING_INDEX) is None:
        return {}
    return dict(store.read(EMBEDDING_INDEX, WHOLE, "shards", ["shard", "data_version"]).iter_rows())


def _packed_roots(store: TableStore, shard: str) -> pl.DataFrame:
    """root_id and sample_id of a shard's roots."""
    segments = store.read(LONG_CONTEXT_SAMPLES, shard, "segments", ["root_id", "sample_id", "role"])
    return segments.filter(role="root").select("root_id", "sample_id").unique()
