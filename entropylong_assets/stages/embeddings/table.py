"""The LanceDB table of all chunks of a corpus: text, place and vector.

Shards are replaced in one commit each: a reader sees a shard whole or not at all. Searches read a
tagged version, which writers never change.

Legend: Q queries, E dimensions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
from lancedb.index import Bitmap, BTree
from numpy.typing import NDArray

from entropylong_assets.stages.embeddings import text_search
from entropylong_assets.stages.embeddings.chunk_sample import ChunkSample, lowest_points
from entropylong_assets.stages.embeddings.compaction import compact
from entropylong_assets.stages.embeddings.connection import (
    LOOKUP_COLUMNS,
    chunk_schema,
    dimension_and_embedder,
    open_existing,
    open_or_create,
    quoted,
    table_uri,
    vectors_of,
)
from entropylong_assets.stages.embeddings.exact import Block, devices_of, in_blocks
from entropylong_assets.stages.embeddings.scans import scan_rows
from entropylong_assets.stages.embeddings.search import measure, search_by_index, search_exactly
from entropylong_assets.stages.embeddings.segments import SegmentedIndex, Segments
from entropylong_assets.stages.embeddings.shard_commits import (
    ShardCommit,
    open_dataset,
    rows_of_shard,
    shards_committed,
)
from entropylong_assets.stages.embeddings.tables import CHUNK_EMBEDDINGS, EMBEDDING_INDEX
from entropylong_assets.stages.embeddings.vector_table import EXACT, Search
from entropylong_assets.storage.manifest import TableError
from entropylong_assets.storage.tables import WHOLE, TableStore

if TYPE_CHECKING:
    from entropylong_assets.stages.embeddings.embedder import Embedder

_KEYS_PER_QUERY = 1000


class ChunkTable:
    """The table of one corpus: a `WritableVectorTable`."""

    def __init__(self, corpus_uri: str, dimension: int, embedder: str, table: Any = None) -> None:
        """Open the table; create it if it does not exist.

        table: the table itself, if it is already open. Raises TableError if it holds vectors of
        another embedder.
        """
        self._corpus_uri, self._uri = corpus_uri, table_uri(corpus_uri)
        data_uri, _, corpus = corpus_uri.rpartition("/")
        self._store = TableStore(data_uri, corpus)
        self._schema = chunk_schema(dimension, embedder)
        self._table = table or open_or_create(corpus_uri, self._schema)
        self._refuse_other_embedder()

    def _refuse_other_embedder(self) -> None:
        dimension, embedder = dimension_and_embedder(self._table.schema)
        wanted, ours = dimension_and_embedder(self._schema)
        if dimension == wanted and embedder in ("", ours):
            return
        raise TableError(
            f"LanceDB table {self._uri}: it holds {dimension}-dimensional vectors of {embedder}, "
            f"but embedding.model and embedding.dimensions give {wanted}-dimensional vectors of "
            f"{ours}; choose another name for a corpus with these, or delete {self._uri} and "
            f"materialize {CHUNK_EMBEDDINGS.name} for all shards"
        )

    @property
    def version(self) -> int:
        return int(self._table.version)

    @property
    def rows(self) -> int:
        """Rows of the version that is read."""
        return int(self._table.count_rows())

    def replace_shard(self, shard: str, batches: Iterable[pa.RecordBatch]) -> None:
        """Replace all rows of the shard by these, in one commit, beside any other writers.

        Raises ShardConflictError if others always commit first.
        """
        change = ShardCommit(self._corpus_uri, shard)
        change.write(batches)
        change.commit()
        self._table.checkout_latest()

    def extend_shard(self, shard: str, batches: Iterable[pa.RecordBatch]) -> None:
        """Add rows to those that the shard has in the version that is read, in one commit.

        Raises ShardConflictError if another process has written the shard since.
        """
        change = ShardCommit(self._corpus_uri, shard)
        change.write(batches)
        change.commit(added_to=self.version)
        self._table.checkout_latest()

    def shards_written(self, after: int) -> set[str]:
        """Return the shards that any process wrote after a version, up to the one that is read."""
        return shards_committed(open_dataset(self._corpus_uri, self.version), after)

    def delete_documents(self, shard: str, doc_ids: Sequence[str]) -> None:
        """Delete documents of one shard."""
        for i in range(0, len(doc_ids), _KEYS_PER_QUERY):
            ids = quoted(doc_ids[i : i + _KEYS_PER_QUERY])
            self._table.delete(f"{rows_of_shard(shard)} AND doc_id IN {ids}")

    def rows_by_shard(self) -> dict[str, int]:
        """Count the rows per shard; reads a column of the whole table."""
        rows: dict[str, int] = {}
        for batch in self.scan(["shard"]):
            for shard, count in batch["shard"].value_counts().iter_rows():
                rows[shard] = rows.get(shard, 0) + count
        return rows

    def sample_chunks(self, excluded_shards: Collection[str]) -> pl.DataFrame:
        """Return the sample's chunks; reads the ids of the whole table."""
        columns = [*LOOKUP_COLUMNS]
        return lowest_points(self._store, lambda: self.reader(columns), excluded_shards)

    def chunk_sample(self, excluded_shards: Collection[str]) -> ChunkSample:
        """Return chunks of all shards but these, at the version that is read.

        `embedding_index` stores those of its own version. For any other version the ids of all
        chunks are read again; the result is the same.
        """
        index = self._store.manifest(EMBEDDING_INDEX)
        if index and index.format_version == EMBEDDING_INDEX.format_version:
            made_of = (index.summary["table_version"], index.summary["excluded_shards"])
            if made_of == (self.version, sorted(excluded_shards)):
                chunks = self._store.read(EMBEDDING_INDEX, WHOLE, "sample")
                if self._store.manifest(EMBEDDING_INDEX) == index:  # it was not replaced meanwhile
                    return ChunkSample(chunks, index.summary["n_rows"])
        rows = self.rows_by_shard()
        total = sum(n for shard, n in rows.items() if shard not in excluded_shards)
        return ChunkSample(self.sample_chunks(excluded_shards), total)

    def scan(self, columns: list[str], shard: str | None = None) -> Iterator[pl.DataFrame]:
        """Yield the rows of one shard, or of all, in batches."""
        for batch in self.reader(columns, shard):
            frame = pl.from_arrow(batch)
            assert isinstance(frame, pl.DataFrame)
            yield frame

    def reader(self, columns: list[str], shard: str | None = None) -> pa.RecordBatchReader:
        """The same rows as a stream of Arrow batches."""
        where = None if shard is None else rows_of_shard(shard)
        return scan_rows(self._corpus_uri, self.version, columns, where)

    def vectors(self, excluded_shards: Sequence[str] = ()) -> Iterator[Block]:
        """Yield row numbers and unit vectors of all shards but these, in blocks."""
        where = f"shard NOT IN {quoted(excluded_shards)}" if excluded_shards else None
        rows = scan_rows(self._corpus_uri, self.version, ["vector"], where, with_row_id=True)

        def pieces() -> Iterator[Block]:
            for batch in rows:
                yield np.asarray(batch["_rowid"]).astype(np.int64), vectors_of(batch["vector"])

        return in_blocks(pieces())

    def fetch(self, chunk_ids: Sequence[str], columns: list[str]) -> pl.DataFrame:
        """Return the rows of these chunks, and their shards; of a copied chunk the first by shard.

        columns: must include chunk_id.
        """
        parts = []
        for i in range(0, len(chunk_ids), _KEYS_PER_QUERY):
            ids = quoted(chunk_ids[i : i + _KEYS_PER_QUERY])
            query = self._table.search().where(f"chunk_id IN {ids}")
            parts.append(pl.from_arrow(query.select([*columns, "shard"]).to_arrow()))
        if not parts:
            return pl.DataFrame(schema=[*columns, "shard"])
        rows = pl.concat(parts)  # type: ignore[type-var]
        assert isinstance(rows, pl.DataFrame)
        return rows.sort(*LOOKUP_COLUMNS).unique("chunk_id", keep="first", maintain_order=True)

    # The index and its versions

    def optimize(self) -> None:
        """Compact the table and open its newest version."""
        compact(self._corpus_uri)
        self._table.checkout_latest()

    def indexed_columns(self) -> set[str]:
        return {column for index in self._table.list_indices() for column in index.columns}

    def index_for_lookup(self) -> None:
        """Index chunk_id and shard, so that no fetch reads the whole table."""
        for column, config in zip(LOOKUP_COLUMNS, (BTree(), Bitmap()), strict=True):
            if column not in self.indexed_columns() and self._table.count_rows():
                self._table.create_index(column, config=config)

    def complete_index(self, kind: str, generation: int = 0, device: str = "cpu") -> Segments:
        """Index the vectors of all rows that have no index yet; segments that exist stay.

        The vectors stay in the table, whole, whatever the type. device: where centroids are trained
        if there are none of this generation. Rows of shards that other processes write meanwhile
        may be left out. Raises TableError if others are.
        """
        index, version = SegmentedIndex(self._corpus_uri, kind, generation, device), self.version
        done = index.complete()
        self._table.checkout_latest()
        unindexed = index.unindexed_rows(self.version)
        if unindexed and not self.shards_written(version):
            raise TableError(
                f"LanceDB table {self._uri}: the index was built but leaves out {unindexed} of "
                f"{self._table.count_rows()} rows; set embedding.search to 'exact'"
            )
        return done

    def build_text_index(self) -> None:
        """Index the words of all rows."""
        if self._table.count_rows():
            text_search.build_text_index(self._table)

    def drop_text_index(self) -> None:
        """Drop the index of words from the present version; tagged versions keep theirs."""
        text_search.drop_text_index(self._table)

    def has_index(self) -> bool:
        return "vector" in self.indexed_columns()

    def tag(self, name: str) -> int:
        """Tag the present version, so that it is kept and can be read later; return its number."""
        version = self.version
        if name in self._table.tags.list():
            self._table.tags.update(name, version)
        else:
            self._table.tags.create(name, version)
        return version

    def checkout(self, tag: str) -> None:
        """Read from the tagged version from now on. Raises TableError if there is none."""
        if tag not in self._table.tags.list():
            raise TableError(
                f"LanceDB table {self._uri}: no version is tagged {tag}; materialize "
                f"{EMBEDDING_INDEX.name} again"
            )
        self._table.checkout(tag)

    def search(
        self,
        vectors_QE: NDArray[np.float32],
        limit: int,
        excluded_shards: Sequence[str] = (),
        how: Search = EXACT,
        device: str = "auto",
    ) -> pl.DataFrame:
        """Return the `limit` nearest chunks per query by cosine.

        Columns: query (int), chunk_id, doc_id, shard, similarity (float32, of the whole vectors,
        whatever the index holds). An exact search compares all vectors with all queries at once, on
        `device`; `auto`: on all GPUs that this process sees.
        """
        if how.search == EXACT.search:
            blocks = self.vectors(excluded_shards)
            found = search_exactly(blocks, vectors_QE, limit, devices_of(device))
        else:
            found = search_by_index(self._table, vectors_QE, limit, excluded_shards, how)
        return measure(self._table, vectors_QE, found)

    def search_text(
        self, texts: Sequence[str], limit: int, excluded_shards: Sequence[str] = ()
    ) -> pl.DataFrame:
        """Return the `limit` chunks per text with the highest BM25 score.

        Columns: query (int), chunk_id, doc_id, shard, score (float32). Raises TableError if the
        version that is read has no index of words: LanceDB would read all rows for every text.
        """
        if text_search.COLUMN not in self.indexed_columns() and self._table.count_rows():
            raise TableError(
                f"LanceDB table {self._uri}: it has no index of words; set embedding.text_index: "
                f"true and materialize {EMBEDDING_INDEX.name} again"
            )
        return text_search.search_words(self._table, texts, limit, excluded_shards)


def open_table(store: TableStore, tag: str | None = None) -> ChunkTable:
    """Open the table of a corpus, whatever its embedder: at a tagged version, or the newest.

    Raises TableError if there is no table or no such tag.
    """
    existing = open_existing(store.corpus_uri)
    dimension, embedder = dimension_and_embedder(existing.schema)
    table = ChunkTable(store.corpus_uri, dimension, embedder, existing)
    if tag is not None:
        table.checkout(tag)
    return table


def load_table(store: TableStore, embedder: Embedder, tag: str | None = None) -> ChunkTable:
    """Open the table of a corpus to search it with vectors of this embedder.

    Raises TableError as `open_table` does, or if its vectors are another embedder's.
    """
    existing = open_existing(store.corpus_uri)
    table = ChunkTable(store.corpus_uri, embedder.dimension, embedder.identity, existing)
    if tag is not None:
        table.checkout(tag)
    return table
