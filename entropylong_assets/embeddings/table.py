"""The LanceDB table of all chunks: text, place and vector.

One row a chunk and shard. Shards are replaced in one commit each, so that a reader sees a shard
whole or not at all; searches read a tagged version, so that writers never move it under them.

Legend: Q queries, E dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import lancedb
import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from entropylong_assets.storage.tables import TableError

TABLE = "chunks"
_KEY = ["chunk_id", "shard"]


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


def quoted(values: Iterable[str]) -> str:
    """SQL list of string literals."""
    return "(" + ", ".join("'" + value.replace("'", "''") + "'" for value in values) + ")"


class ChunkTable:
    """The table of one pipeline. Opening it creates it where it is not there."""

    def __init__(self, data_uri: str, dimension: int, embedder: str) -> None:
        self._uri = f"{data_uri}/lancedb"
        self._schema = chunk_schema(dimension, embedder)
        self._db = lancedb.connect(self._uri)
        try:
            self._table = self._db.open_table(TABLE)
        except ValueError:  # it is not there; where another process makes it now, that one is taken
            self._table = self._db.create_table(TABLE, schema=self._schema, exist_ok=True)
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
        """Puts these rows in the place of all rows of the shard, in one commit."""
        reader = pa.RecordBatchReader.from_batches(self._schema, batches)
        mine = f"shard IN {quoted([shard])}"
        if self._table.count_rows(mine) == 0:
            self._table.add(reader)  # the parallel path: no join with what is there
            return
        (
            self._table.merge_insert(_KEY)
            .when_matched_update_all()
            .when_not_matched_insert_all()
            .when_not_matched_by_source_delete(mine)
            .execute(reader)
        )

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

    def build_index(self, dimension: int) -> None:
        """An IVF index over all rows, with vectors kept exact inside (no quantisation)."""
        rows = self._table.count_rows()
        self._table.create_index(
            "cosine",
            num_partitions=max(1, round(rows**0.5)),
            vector_column_name="vector",
            index_type="IVF_FLAT",
            replace=True,
        )
        unindexed = self.unindexed_rows()
        if unindexed:
            raise TableError(
                f"LanceDB table {self._uri}: the index was built but leaves out {unindexed} of "
                f"{rows} rows of dimension {dimension}; raise embedding.ann_min_rows"
            )

    def has_index(self) -> bool:
        return bool(list(self._table.list_indices()))

    def unindexed_rows(self) -> int:
        indices = list(self._table.list_indices())
        if not indices:
            return int(self._table.count_rows())
        stats = self._table.index_stats(indices[0].name)
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
        nprobes: int | None = None,
    ) -> pl.DataFrame:
        """The `limit` nearest chunks of each query by cosine.

        Columns: query (int), chunk_id, doc_id, shard, similarity. Exact where there is no index
        or `nprobes` is none.
        """
        query: Any = self._table.search(vectors_QE, vector_column_name="vector")
        query = query.distance_type("cosine").limit(limit)
        query = query.select(["chunk_id", "doc_id", "shard", "_distance"])
        query = query.nprobes(nprobes) if nprobes else query.bypass_vector_index()
        if excluded_shards:
            query = query.where(f"shard NOT IN {quoted(excluded_shards)}", prefilter=True)
        found = pl.from_arrow(query.to_arrow())
        assert isinstance(found, pl.DataFrame)
        if "query_index" not in found.columns:  # a single query has no such column
            found = found.with_columns(pl.lit(0).alias("query_index"))
        return found.select(
            pl.col("query_index").cast(pl.Int64).alias("query"),
            "chunk_id",
            "doc_id",
            "shard",
            (1 - pl.col("_distance")).alias("similarity"),
        )


def open_table(data_uri: str, tag: str | None = None) -> ChunkTable:
    """The table as it is, whatever its embedder; at a tagged version, or the newest."""
    try:
        schema = lancedb.connect(f"{data_uri}/lancedb").open_table(TABLE).schema
    except ValueError:
        raise TableError(
            f"LanceDB table {data_uri}/lancedb: it is not there; materialise chunk_embeddings"
        ) from None
    embedder = (schema.metadata or {}).get(b"embedder", b"").decode()
    table = ChunkTable(data_uri, schema.field("vector").type.list_size, embedder)
    if tag is not None:
        table.checkout(tag)
    return table
