"""The LanceDB table of all chunks: text, place and vector.

One row a chunk and shard. Shards are replaced in one commit each, so that a reader sees a shard
whole or not at all; searches read a tagged version, so that writers never move it under them.

Legend: Q queries, E dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
from lancedb.index import Bitmap, BTree, IvfFlat, IvfRq, IvfSq
from numpy.typing import NDArray

from entropylong_assets.stages.embeddings.connection import connect, is_missing
from entropylong_assets.stages.embeddings.exact import Block, cosines, device_of, in_blocks, nearest
from entropylong_assets.storage.tables import WHOLE, TableError, TableStore, locked

TABLE = "chunks"
_KEY = ["chunk_id", "shard"]


VECTOR_INDEXES: Mapping[str, Any] = {"ivf_flat": IvfFlat, "ivf_sq": IvfSq, "ivf_rq": IvfRq}

# Of k-means: 64 vectors a partition and 20 rounds halve the time of the defaults (256 and 50) and
# give the same recall (benchmarks/RESULTS.md).
_TRAINING = {"sample_rate": 64, "max_iterations": 20}

PAIRS_MEASURED = 16_384
"""Vectors fetched at once to measure what a search found (24 MiB at 384 dimensions)."""


FOUND = pl.Schema(
    {
        "query": pl.Int64,
        "chunk_id": pl.String,
        "doc_id": pl.String,
        "shard": pl.String,
        "similarity": pl.Float32,
    }
)


class Search(NamedTuple):
    """How a table is searched: by its index, or exactly."""

    search: str
    """`exact`, or the type of the index."""
    nprobes: int | None = None
    """Partitions of the index that a query looks at."""
    refine_factor: int | None = None
    """The index gives so many times the rows wanted, and the exact vectors choose of them."""


EXACT = Search("exact")


def search_of(summary: Mapping[str, Any]) -> Search:
    """The search that a summary of `embedding_index` or `candidate_contexts` tells of."""
    return Search(summary["search"], summary["nprobes"], summary["refine_factor"])


def chunk_schema(dimension: int, embedder: str) -> pa.Schema:
    """Schema of the table; its metadata name the embedder, so that two are never mixed."""
    required = {"chunk_id", "shard"}
    fields = [
        pa.field("chunk_id", pa.string()),
        pa.field("doc_id", pa.string()),
        pa.field("shard", pa.string()),
        pa.field("source", pa.string()),
        pa.field("start", pa.int32()),
        pa.field("end", pa.int32()),
        pa.field("text", pa.large_string()),
        pa.field("vector", pa.list_(pa.float32(), dimension)),
    ]
    return pa.schema(
        [field.with_nullable(field.name not in required) for field in fields],
        metadata={"embedder": embedder},
    )


def partitions(rows: int) -> int:
    """Of an index over so many rows."""
    return max(1, round(rows**0.5))


def quoted(values: Iterable[str]) -> str:
    """SQL list of string literals."""
    return "(" + ", ".join("'" + value.replace("'", "''") + "'" for value in values) + ")"


class ChunkTable:
    """The table of one pipeline. Opening it creates it where it is not there."""

    def __init__(self, data_uri: str, dimension: int, embedder: str) -> None:
        self._uri = f"{data_uri}/lancedb"
        self._assets = TableStore(data_uri)
        store = TableStore(self._uri)
        self._folder = store.root if store.is_local else None
        self._schema = chunk_schema(dimension, embedder)
        db = connect(data_uri)
        try:
            self._table = db.open_table(TABLE)
        except ValueError as error:
            if not is_missing(error):
                raise
            # Where another process makes it now, that one is taken.
            self._table = db.create_table(TABLE, schema=self._schema, exist_ok=True)
        self._refuse_other_embedder()

    def _refuse_other_embedder(self) -> None:
        there = self._table.schema
        width = there.field("vector").type.list_size
        wanted = self._schema.field("vector").type.list_size
        embedder = (there.metadata or {}).get(b"embedder", b"").decode()
        ours = self._schema.metadata[b"embedder"].decode()
        if width == wanted and embedder in ("", ours):
            return
        raise TableError(
            f"LanceDB table {self._uri}: it holds {width}-dimensional vectors of {embedder}, but "
            f"embedding.model gives {wanted}-dimensional vectors of {ours}; name another data_uri, "
            f"or delete {self._uri} and materialise chunk_embeddings for all shards"
        )

    @property
    def version(self) -> int:
        return int(self._table.version)

    def replace_shard(self, shard: str, batches: Iterable[pa.RecordBatch]) -> None:
        """Puts these rows in the place of all rows of the shard, in one commit.

        On a local disk one process writes at a time. Elsewhere, where no lock is to be had, two
        that write one shard at once are found out: raises RuntimeError with a commit conflict, and
        the next call replaces what both wrote.
        """
        with locked(self._folder) if self._folder else nullcontext():
            self._table.checkout_latest()
            self._replace_shard(shard, batches)

    def _replace_shard(self, shard: str, batches: Iterable[pa.RecordBatch]) -> None:
        written = 0

        def counted() -> Iterator[pa.RecordBatch]:
            nonlocal written
            for batch in batches:
                written += len(batch)
                yield batch

        reader = pa.RecordBatchReader.from_batches(self._schema, counted())
        mine = f"shard IN {quoted([shard])}"
        if self._is_doubled(shard):
            self._table.delete(mine)  # a merge would bring both copies up to date
        if self._table.count_rows(mine) == 0:
            self._table.add(reader)  # the parallel path: no join with what is there
        else:
            (
                self._table.merge_insert(_KEY)
                .when_matched_update_all()
                .when_not_matched_insert_all()
                .when_not_matched_by_source_delete(mine)
                .execute(reader)
            )
        self._table.checkout_latest()
        there = self._table.count_rows(mine)
        if there != written:
            raise RuntimeError(
                f"LanceDB table {self._uri}: commit conflict: shard {shard} has {there} rows in "
                f"the place of {written}, so another process writes it too; materialise it again"
            )

    def _is_doubled(self, shard: str) -> bool:
        """Whether two processes added the shard at once, each finding it empty."""
        ids = [batch["chunk_id"] for batch in self.scan(["chunk_id"], shard)]
        return bool(ids) and bool(pl.concat(ids).is_duplicated().any())

    def delete_documents(self, shard: str, doc_ids: Sequence[str]) -> None:
        """Takes documents of one shard out of the table."""
        for i in range(0, len(doc_ids), 1000):
            ids = quoted(doc_ids[i : i + 1000])
            self._table.delete(f"shard IN {quoted([shard])} AND doc_id IN {ids}")

    def rows_by_shard(self) -> dict[str, int]:
        rows: dict[str, int] = {}
        for batch in self.scan(["shard"]):
            for shard, count in batch["shard"].value_counts().iter_rows():
                rows[shard] = rows.get(shard, 0) + count
        return rows

    def indexed_rows(self) -> dict[str, int]:
        """Rows of each indexed shard at the version that is read, and perhaps of others.

        `embedding_index` knows them of its own version. Of any other they are counted, those of
        shards that are not indexed too: that reads a column of the whole table.
        """
        index = self._assets.manifest("embedding_index")
        if index and index.summary["table_version"] == self.version:
            rows = self._assets.read("embedding_index", WHOLE, "shards", ["shard", "n_chunks"])
            if self._assets.manifest("embedding_index") == index:  # none was made meanwhile
                return dict(rows.iter_rows())
        return self.rows_by_shard()

    def scan(self, columns: list[str], shard: str | None = None) -> Iterator[pl.DataFrame]:
        """Rows in batches, those of one shard or of all."""
        for batch in self.reader(columns, shard):
            frame = pl.from_arrow(batch)
            assert isinstance(frame, pl.DataFrame)
            yield frame

    def reader(self, columns: list[str], shard: str | None = None) -> pa.RecordBatchReader:
        """The same rows as a stream of Arrow batches."""
        query = self._table.search().select(columns)
        if shard is not None:
            query = query.where(f"shard IN {quoted([shard])}")
        return query.to_batches()

    def vectors(self, excluded_shards: Sequence[str] = ()) -> Iterator[Block]:
        """Row numbers and unit vectors of all shards but these, in blocks."""
        query = self._table.search().select(["vector"]).with_row_id(True)
        if excluded_shards:
            query = query.where(f"shard NOT IN {quoted(excluded_shards)}")

        def pieces() -> Iterator[Block]:
            for batch in query.to_batches():
                vectors_BE = np.asarray(batch["vector"].flatten()).reshape(len(batch), -1)
                yield np.asarray(batch["_rowid"]).astype(np.int64), vectors_BE

        return in_blocks(pieces())

    def fetch(self, chunk_ids: Sequence[str], columns: list[str]) -> pl.DataFrame:
        """The rows of these chunks; where copies stand in two shards, of the first by name.

        `columns` include chunk_id.
        """
        parts = []
        for i in range(0, len(chunk_ids), 1000):
            query = self._table.search().where(f"chunk_id IN {quoted(chunk_ids[i : i + 1000])}")
            parts.append(pl.from_arrow(query.select([*columns, "shard"]).to_arrow()))
        if not parts:
            return pl.DataFrame(schema=[*columns, "shard"])
        rows = pl.concat(parts)  # type: ignore[type-var]
        assert isinstance(rows, pl.DataFrame)
        return rows.sort(*_KEY).unique("chunk_id", keep="first", maintain_order=True)

    # The index and its versions

    def optimise(self) -> None:
        """Compacts small fragments and takes new rows into the index."""
        self._table.optimize()

    def indexed_columns(self) -> set[str]:
        return {column for index in self._table.list_indices() for column in index.columns}

    def index_for_lookup(self) -> None:
        """Indexes of chunk_id and shard, so that no fetch reads the whole table."""
        for column, config in (("chunk_id", BTree()), ("shard", Bitmap())):
            if column not in self.indexed_columns() and self._table.count_rows():
                self._table.create_index(column, config=config)

    def build_index(self, kind: str) -> None:
        """An index of this type over all rows; the vectors stay whole beside it."""
        rows = self._table.count_rows()
        config = VECTOR_INDEXES[kind](
            distance_type="cosine", num_partitions=partitions(rows), **_TRAINING
        )
        self._table.create_index("vector", config=config, replace=True)
        unindexed = self.unindexed_rows()
        if unindexed:
            raise TableError(
                f"LanceDB table {self._uri}: the index was built but leaves out {unindexed} of "
                f"{rows} rows; set embedding.search to 'exact'"
            )

    def has_index(self) -> bool:
        return "vector" in self.indexed_columns()

    def unindexed_rows(self) -> int:
        names = [i.name for i in self._table.list_indices() if i.columns == ["vector"]]
        stats = self._table.index_stats(names[0]) if names else None
        return int(stats.num_unindexed_rows) if stats else int(self._table.count_rows())

    def tag(self, name: str) -> int:
        """Names the present version, so that it stays and can be read later."""
        version = self.version
        if name in self._table.tags.list():
            self._table.tags.update(name, version)
        else:
            self._table.tags.create(name, version)
        return version

    def checkout(self, tag: str) -> None:
        """Reads from the tagged version from now on. Raises TableError where there is none."""
        if tag not in self._table.tags.list():
            raise TableError(
                f"LanceDB table {self._uri}: no version is tagged {tag}; materialise "
                f"embedding_index again"
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
        """The `limit` nearest chunks of each query by cosine.

        Columns: query (int), chunk_id, doc_id, shard, similarity (float32, of the whole vectors,
        whatever the index holds). An exact search reads all vectors once for all queries together,
        on `device`; so does an index that was never built.
        """
        if how.search == EXACT.search:
            blocks = self.vectors(excluded_shards)
            rows_QK, _ = nearest(vectors_QE, blocks, limit, device_of(device))
            found = pl.DataFrame(
                {
                    "query": np.repeat(np.arange(len(rows_QK)), rows_QK.shape[1]),
                    "row": rows_QK.reshape(-1),
                }
            )
        else:
            found = self._by_index(vectors_QE, limit, excluded_shards, how)
        parts = [
            self._measured(vectors_QE, found[i : i + PAIRS_MEASURED])
            for i in range(0, len(found), PAIRS_MEASURED)
        ]
        return pl.concat(parts) if parts else pl.DataFrame(schema=FOUND)

    def _by_index(
        self,
        vectors_QE: NDArray[np.float32],
        limit: int,
        excluded_shards: Sequence[str],
        how: Search,
    ) -> pl.DataFrame:
        query: Any = self._table.search(vectors_QE, vector_column_name="vector")
        query = query.distance_type("cosine").limit(limit).select(["_distance"]).with_row_id(True)
        query = query.nprobes(how.nprobes)
        if how.refine_factor:
            query = query.refine_factor(how.refine_factor)
        if excluded_shards:
            query = query.where(f"shard NOT IN {quoted(excluded_shards)}", prefilter=True)
        found = pl.from_arrow(query.to_arrow())
        assert isinstance(found, pl.DataFrame)
        if "query_index" not in found.columns:  # a single query has no such column
            found = found.with_columns(pl.lit(0).alias("query_index"))
        return found.select(
            pl.col("query_index").cast(pl.Int64).alias("query"),
            pl.col("_rowid").cast(pl.Int64).alias("row"),
        )

    def _measured(self, vectors_QE: NDArray[np.float32], found: pl.DataFrame) -> pl.DataFrame:
        """The chunks of these rows, and their similarity to the query that found them."""
        taken = self._table.take_row_ids(found["row"].unique().to_list())
        rows = taken.select(["chunk_id", "doc_id", "shard", "vector"]).with_row_id().to_arrow()
        vectors_RE = np.asarray(rows["vector"].combine_chunks().flatten())
        vectors_RE = vectors_RE.reshape(len(rows), vectors_QE.shape[1])
        known = pl.from_arrow(rows.drop(["vector"]))
        assert isinstance(known, pl.DataFrame)
        known = known.with_columns(pl.col("_rowid").cast(pl.Int64)).with_row_index("at")
        pairs = found.join(known, left_on="row", right_on="_rowid", maintain_order="left")
        assert len(pairs) == len(found), "a row that was found is in the table"
        similarity = cosines(
            vectors_QE[pairs["query"].to_numpy()], vectors_RE[pairs["at"].to_numpy()]
        )
        return pairs.select("query", "chunk_id", "doc_id", "shard").with_columns(
            pl.Series("similarity", similarity)
        )


def open_table(data_uri: str, tag: str | None = None) -> ChunkTable:
    """The table as it is, whatever its embedder; at a tagged version, or the newest."""
    try:
        schema = connect(data_uri).open_table(TABLE).schema
    except ValueError as error:
        if not is_missing(error):
            raise
        raise TableError(
            f"LanceDB table {data_uri}/lancedb: it is not there; materialise chunk_embeddings"
        ) from None
    embedder = (schema.metadata or {}).get(b"embedder", b"").decode()
    table = ChunkTable(data_uri, schema.field("vector").type.list_size, embedder)
    if tag is not None:
        table.checkout(tag)
    return table
