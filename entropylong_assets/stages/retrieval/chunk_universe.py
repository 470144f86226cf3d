"""All indexed chunks, to draw one of them at random: for control contexts and random contexts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence

import polars as pl

from entropylong_assets.stages.embeddings.vector_table import VectorTable

MAX_IDS = 4_000_000
"""Maximum number of chunk ids kept in memory to draw from (about 220 MB)."""


class ChunkUniverse:
    """All indexed chunks by shard; ids are loaded one shard at a time."""

    def __init__(
        self,
        shard_sizes: Sequence[tuple[str, int]],
        chunk_ids: Callable[[str], Sequence[str] | pl.Series],
    ) -> None:
        """shard_sizes: (shard, number of chunks). chunk_ids: ids of a shard's chunks, in order."""
        self._sizes = shard_sizes
        self._chunk_ids = chunk_ids
        self.total = sum(size for _, size in shard_sizes)

    def draw(self, seed: int, root_id: str, control: int, attempt: int) -> str:
        """Return a chunk id. All are equally likely; the same arguments give the same id."""
        key = f"{seed}:control:{root_id}:{control}:{attempt}".encode()
        index = int.from_bytes(hashlib.sha256(key).digest()[:16], "big") % self.total
        for shard, size in self._sizes:
            if index < size:
                return self._chunk_ids(shard)[index]
            index -= size
        raise AssertionError("index within total")


def chunk_universe(
    table: VectorTable, excluded_shards: Collection[str], max_ids: int = MAX_IDS
) -> ChunkUniverse:
    """Make the universe of all chunks of the table, at the version that is checked out.

    Chunks are ordered by id: the order of rows in the table depends on the order in which shards
    were written. excluded_shards: shards that are in the table but not in its index. max_ids: ids
    of the shards drawn from last are kept up to this number, and those of one shard always.
    """
    sizes = sorted(
        (shard, n) for shard, n in table.indexed_rows().items() if shard not in excluded_shards
    )

    kept: dict[str, pl.Series] = {}

    def ids(shard: str) -> pl.Series:
        if shard in kept:
            kept[shard] = kept.pop(shard)  # most recently used last
        else:
            parts = [batch["chunk_id"] for batch in table.scan(["chunk_id"], shard)]
            kept[shard] = pl.concat(parts).sort()
        while len(kept) > 1 and sum(map(len, kept.values())) > max_ids:
            kept.pop(next(iter(kept)))
        return kept[shard]

    return ChunkUniverse(sizes, ids)
