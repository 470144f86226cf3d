"""What the stages ask of a table of vectors, and how it is searched.

`table.ChunkTable`, over LanceDB, is the one implementation.

Legend: Q queries, E dimensions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from entropylong_assets.stages.embeddings.chunk_sample import ChunkSample
from entropylong_assets.stages.embeddings.exact import Block

if TYPE_CHECKING:
    from entropylong_assets.stages.embeddings.segments import Segments

FOUND = pl.Schema(
    {
        "query": pl.Int64,
        "chunk_id": pl.String,
        "doc_id": pl.String,
        "shard": pl.String,
        "similarity": pl.Float32,
    }
)
"""Columns of the result of a search."""

FOUND_BY_TEXT = pl.Schema(
    {
        "query": pl.Int64,
        "chunk_id": pl.String,
        "doc_id": pl.String,
        "shard": pl.String,
        "score": pl.Float32,
    }
)
"""Columns of the result of a full-text search."""

SCORE_DIGITS = 3
"""Decimals of a BM25 score. It is a sum of float32 terms, whose order may vary."""


class Search(NamedTuple):
    """How a table is searched: by its index, or exactly."""

    search: str
    """`exact`, or the type of the index."""
    nprobes: int | None = None
    """Partitions of the index searched per query."""
    refine_factor: int | None = None
    """The index nominates this many rows per row wanted; the whole vectors decide."""


EXACT = Search("exact")


class Searched(Protocol):
    """A summary that records how its table was searched."""

    @property
    def search(self) -> str: ...
    @property
    def nprobes(self) -> int | None: ...
    @property
    def refine_factor(self) -> int | None: ...


def search_of(summary: Searched) -> Search:
    """The search that a summary of `embedding_index` or of the candidates records."""
    return Search(summary.search, summary.nprobes, summary.refine_factor)


class VectorTable(Protocol):
    """A table of chunks with vectors, read at one version. One row per chunk and shard.

    Columns: chunk_id, doc_id, shard, source, start, end, text, vector (unit length, float32).
    """

    @property
    def version(self) -> int:
        """Number of the version that is read."""

    def checkout(self, tag: str) -> None:
        """Read from the tagged version from now on. Raises TableError if it does not exist."""

    def chunk_sample(self, excluded_shards: Collection[str]) -> ChunkSample:
        """Return chunks of all shards but these, to draw random ones from."""

    def scan(self, columns: list[str], shard: str | None = None) -> Iterator[pl.DataFrame]:
        """Yield the rows of one shard, or of all, in batches."""

    def vectors(self, excluded_shards: Sequence[str] = ()) -> Iterator[Block]:
        """Yield row numbers and vectors of all shards but these, in blocks."""

    def fetch(self, chunk_ids: Sequence[str], columns: list[str]) -> pl.DataFrame:
        """Return the rows of these chunks, with the column shard."""

    def search(
        self,
        vectors_QE: NDArray[np.float32],
        limit: int,
        excluded_shards: Sequence[str] = (),
        how: Search = EXACT,
        device: str = "auto",
    ) -> pl.DataFrame:
        """Return the `limit` nearest chunks per query by cosine; columns as `FOUND`."""

    def search_text(
        self, texts: Sequence[str], limit: int, excluded_shards: Sequence[str] = ()
    ) -> pl.DataFrame:
        """Return the `limit` best chunks per text by BM25; columns as `FOUND_BY_TEXT`.

        Raises TableError if the version that is read has no index of words.
        """


class WritableVectorTable(VectorTable, Protocol):
    """What the stages that fill and index the table ask of it besides."""

    def reader(self, columns: list[str], shard: str | None = None) -> pa.RecordBatchReader:
        """The rows of `scan` as a stream of Arrow batches."""

    def replace_shard(self, shard: str, batches: Iterable[pa.RecordBatch]) -> None:
        """Replace all rows of a shard in one commit."""

    def extend_shard(self, shard: str, batches: Iterable[pa.RecordBatch]) -> None:
        """Add rows to a shard in one commit. Raises if it was written since the version read."""

    def shards_written(self, after: int) -> set[str]:
        """Return the shards that any process wrote after a version, up to the one that is read."""

    def delete_documents(self, shard: str, doc_ids: Sequence[str]) -> None:
        """Delete documents of one shard."""

    def rows_by_shard(self) -> dict[str, int]:
        """Count the rows per shard."""

    def sample_chunks(self, excluded_shards: Collection[str]) -> pl.DataFrame:
        """Read all ids; return the sample's chunks, as `ChunkSample.chunks`."""

    def optimize(self) -> None:
        """Join small fragments, add new rows to the lookup indexes, and remove old versions and
        stray files."""

    def index_for_lookup(self) -> None:
        """Index what `fetch` looks rows up by."""

    def complete_index(self, kind: str, generation: int = 0, device: str = "cpu") -> Segments:
        """Index the vectors of all rows that are not indexed.

        device: where centroids are trained if there are none of this generation. Raises TableError
        if rows are left out.
        """

    def build_text_index(self) -> None:
        """Index the words of all rows."""

    def drop_text_index(self) -> None:
        """Drop the index of words from the present version, if there is one."""

    def tag(self, name: str) -> int:
        """Give the present version a name under which it is kept; return its number."""
