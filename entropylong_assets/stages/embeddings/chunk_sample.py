"""A bounded sample of chunks, to draw random chunks from.

The *point* of a chunk is a 64-bit hash of its id: the first 16 hex digits of its MD5. The sample
consists of the chunks with the lowest points. It is a random sample, which depends on the ids alone
and not on shards; if a corpus larger than the sample grows by 1%, 1% of the sample is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

import polars as pl
import pyarrow as pa

from entropylong_assets.storage.duck import querying
from entropylong_assets.storage.tables import TableStore

MAX_CHUNKS = 1_000_000
"""Maximum number of chunks in a sample (about 60 MB in memory)."""

_LOWEST = """
SELECT chunk_id, ('0x' || left(md5(chunk_id), 16))::UBIGINT AS point
FROM chunks WHERE NOT list_contains($excluded, shard)
ORDER BY point, chunk_id LIMIT $limit
"""


class ChunkSample(NamedTuple):
    """Chunks to draw from."""

    chunks: pl.DataFrame
    """chunk_id, point (uint64); sorted by point."""
    total: int
    """Number of indexed chunks, in the sample or not."""


def lowest_points(
    store: TableStore,
    rows: Callable[[], pa.RecordBatchReader | pl.DataFrame],
    excluded_shards: Collection[str],
    limit: int = MAX_CHUNKS,
) -> pl.DataFrame:
    """Return the chunks with the lowest points; columns as `ChunkSample.chunks`.

    rows: chunk_id, shard; read once, in bounded memory. excluded_shards: whose chunks don't count.
    """
    with querying(store, {"chunks": rows}) as session:
        values = {"excluded": sorted(excluded_shards), "limit": limit}
        found = pl.from_arrow(session.sql(_LOWEST, params=values).to_arrow_table())
    assert isinstance(found, pl.DataFrame)
    # Two processes can write one shard at once, and a copy is a chunk all the same.
    return found.unique("chunk_id", keep="first", maintain_order=True)
