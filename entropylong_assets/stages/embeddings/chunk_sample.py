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

POINT = "('0x' || left(md5(chunk_id), 16))::UBIGINT"
"""SQL expression for the point of a chunk."""

_POINTS = f"""
SELECT chunk_id, {POINT} AS point
FROM chunks WHERE NOT list_contains($excluded, shard)
"""

_ORDER = ["point", "chunk_id"]
_ROWS_PER_BATCH = 16_384


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
    kept = pl.DataFrame(schema={"chunk_id": pl.String, "point": pl.UInt64})
    with querying(store, {"chunks": rows}) as session:
        points = session.sql(_POINTS, params={"excluded": sorted(excluded_shards)})
        for batch in points.to_arrow_reader(_ROWS_PER_BATCH):
            part = pl.from_arrow(batch)
            assert isinstance(part, pl.DataFrame)
            kept.extend(part)
            if len(kept) > 1.25 * limit:
                kept = kept.sort(_ORDER).head(limit)
    kept = kept.sort(_ORDER).head(limit)
    # Two processes can write one shard at once, and a copy is a chunk all the same.
    return kept.filter(pl.col("chunk_id").ne_missing(pl.col("chunk_id").shift()))
