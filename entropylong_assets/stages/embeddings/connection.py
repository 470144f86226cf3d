"""Opening the LanceDB table, in a folder or in object storage, and what its columns are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from entropylong_assets.stages.embeddings.tables import CHUNK_EMBEDDINGS
from entropylong_assets.storage.manifest import TableError
from entropylong_assets.storage.object_storage import lance_options

TABLE = "chunks"
LOOKUP_COLUMNS = ("chunk_id", "shard")
"""Columns with an index for lookup, which takes new rows without being built again. They identify a
row."""
INDEX_CACHE_BYTES = 2**27
"""Memory that parts of an index may take (LanceDB's default is 6 GB). The rest is read again from
the operating system's cache of files, which makes a search take 7 to 15% more CPU time
(benchmarks/RESULTS.md). 1 GiB made the memory of a step grow with the table up to that size."""


def table_uri(corpus_uri: str) -> str:
    """Folder of the database of a corpus."""
    return f"{corpus_uri}/lancedb"


def connect(corpus_uri: str) -> Any:
    """Open the database of a corpus; nothing is created."""
    return lancedb.connect(
        table_uri(corpus_uri),
        storage_options=lance_options(corpus_uri),
        session=lancedb.Session(index_cache_size_bytes=INDEX_CACHE_BYTES),
    )


def is_missing(error: ValueError) -> bool:
    """Whether LanceDB says that there is no such table: it reports faults of the store alike."""
    return "was not found" in str(error)


def vectors_of(column: Any) -> NDArray[np.float32]:
    """Return the vectors of an Arrow column, float32 [N, E]."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    return np.asarray(column.flatten()).reshape(len(column), column.type.list_size)


def open_existing(corpus_uri: str) -> Any:
    """Open the table. Raises TableError if it does not exist."""
    try:
        return connect(corpus_uri).open_table(TABLE)
    except ValueError as error:
        if not is_missing(error):
            raise
        raise TableError(
            f"LanceDB table {table_uri(corpus_uri)}: it does not exist; materialize "
            f"{CHUNK_EMBEDDINGS.name}"
        ) from None


def open_or_create(corpus_uri: str, schema: pa.Schema) -> Any:
    """Open the table, or create it if it does not exist."""
    db = connect(corpus_uri)
    try:
        return db.open_table(TABLE)
    except ValueError as error:
        if not is_missing(error):
            raise
        # If another process creates it at the same time, that one is opened.
        return db.create_table(TABLE, schema=schema, exist_ok=True)


def chunk_schema(dimension: int, embedder: str) -> pa.Schema:
    """Schema of the table. Its metadata names the embedder, so that two are never mixed."""
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


def dimension_and_embedder(schema: pa.Schema) -> tuple[int, str]:
    """Dimension and identity of the embedder of a table; the identity may be empty."""
    embedder = (schema.metadata or {}).get(b"embedder", b"").decode()
    return int(schema.field("vector").type.list_size), embedder


def quoted(values: Iterable[str]) -> str:
    """SQL list of string literals."""
    return "(" + ", ".join("'" + value.replace("'", "''") + "'" for value in values) + ")"
