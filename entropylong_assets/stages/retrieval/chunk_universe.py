"""The indexed chunks, to draw one of them at random: for control contexts and random contexts.

A draw depends on the ids of the chunks alone: not on the shards that they are in, nor on the order
in which these were written. It is rendezvous hashing (Thaler and Ravishankar, 1998): each chunk
gets a pseudo-random number from its point (a hash of its id) and the draw's key, and the lowest
number wins. All chunks are equally likely, and in a corpus that grows or shrinks a draw changes
only if its chunk was removed or a new chunk has a lower number. (Taking the chunk whose point
follows the draw's would be as stable, but a chunk after a wide gap would be drawn more often.)

Not every chunk gets a number. The chunks are in `BUCKETS` buckets: a draw chooses a bucket by
weighted rendezvous, with its size as the weight, and gives numbers to the chunks in it. All chunks
are as equally likely, and a draw from a million chunks takes 0.3 ms instead of 8. A few draws move
to another bucket because the sizes changed: with a quarter of 3,000 chunks removed, 1% of the draws
whose chunk remained.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

import numpy as np
import polars as pl
from numpy.typing import NDArray

from entropylong_assets.stages.embeddings.vector_table import VectorTable

BUCKETS = 16


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Pseudo-random 64-bit numbers, one per value: the finaliser of SplitMix64 (Steele et al.,
    2014)."""
    mixed = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


class ChunkUniverse:
    """The chunks that are drawn from."""

    def __init__(self, chunks: pl.DataFrame, total: int | None = None) -> None:
        """chunks: chunk_id, and point (uint64), in any order. total: number of indexed chunks, if
        `chunks` is a sample of them."""
        # The low bits: a sample of a large corpus has points with equal high bits.
        in_buckets = chunks.select("chunk_id", "point", bucket=pl.col("point") % BUCKETS)
        in_buckets = in_buckets.sort("bucket", "point", "chunk_id")
        self._ids = in_buckets["chunk_id"]
        self._points = in_buckets["point"].to_numpy()
        buckets = in_buckets["bucket"].to_numpy()
        self._filled, self._starts, sizes = np.unique(
            buckets, return_index=True, return_counts=True
        )
        self._sizes = sizes.astype(np.float64)
        self.total = len(chunks) if total is None else total

    def draw(self, seed: int, root_id: str, control: int, attempt: int) -> str:
        """Return a chunk id. All are equally likely; the same arguments give the same id."""
        key = f"{seed}:control:{root_id}:{control}:{attempt}".encode()
        of_bucket, of_chunk = np.frombuffer(hashlib.sha256(key).digest()[:16], ">u8").astype("u8")
        # The first of n chunks, whose waiting times are exponential, comes after one of rate n.
        uniform = ((_mixed(self._filled ^ of_bucket) >> np.uint64(11)) + 0.5) * 2.0**-53
        bucket = int(np.argmin(-np.log(uniform) / self._sizes))
        start = int(self._starts[bucket])
        points = self._points[start : start + int(self._sizes[bucket])]
        return str(self._ids[start + int(np.argmin(_mixed(points ^ of_chunk)))])


def chunk_universe(table: VectorTable, excluded_shards: Collection[str]) -> ChunkUniverse:
    """Make the universe of the chunks of the table, at the version that is checked out.

    Of more than `MAX_CHUNKS` (`stages/embeddings/chunk_sample.py`) it contains those with the
    lowest points, so memory is bounded. The chunks are those of the version in which the candidates
    were searched, not of the newest index. So the tag that is recorded with the candidates
    determines every draw: a shard that is verified after the corpus has grown draws what it drew
    before. excluded_shards: shards that are in the table but not in its index.
    """
    sample = table.chunk_sample(excluded_shards)
    return ChunkUniverse(sample.chunks, sample.total)
