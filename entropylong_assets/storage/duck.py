"""DuckDB over the tables: in memory, so that no file of its own can be locked or left behind."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from entropylong_assets.storage.tables import TableError, TableStore

View = tuple[str, Sequence[str], str] | pl.DataFrame | Callable[[], pa.RecordBatchReader]
"""(asset, shards, table); or a frame in memory; or what gives rows as a stream, read once."""


MEMORY = "1GB"
"""What a query may hold; the rest it puts on disk."""


def _quoted(text: str) -> str:
    return text.replace("'", "''")


def file_name(store: TableStore, asset: str, shard: str, table: str) -> str:
    """A table's file as DuckDB reads it."""
    file = store.require(asset, shard).tables[table]
    path = f"{store.folder(asset, shard)}/{file.file}"
    return path if store.is_local else store.known_files.add(path, file.bytes)


def parquet(paths: Sequence[str]) -> str:
    """These files as one table, in SQL; its column `filename` tells them apart."""
    literals = ", ".join(f"'{_quoted(path)}'" for path in paths)
    return f"read_parquet([{literals}], filename = true)"


def _look(store: TableStore, asset: str, shards: Sequence[str], table: str) -> None:
    """Raises TableError if a file has gone or is damaged: DuckDB does not tell that from a fault
    of the network."""
    for shard in shards:
        with store.telling(asset, shard, table), store.open(asset, shard, table) as file:
            pq.read_metadata(file)


def connect(
    store: TableStore, views: Mapping[str, View], only: str | None = None
) -> duckdb.DuckDBPyConnection:
    """A session that has these views, or those of them that the query `only` names."""
    session = duckdb.connect(":memory:", config={"threads": 2, "memory_limit": MEMORY})
    session.execute(f"SET temp_directory = '{_quoted(tempfile.gettempdir())}/entropylong-duckdb'")
    if not store.is_local:
        session.register_filesystem(store.known_files)
    for name, content in views.items():
        if only is not None and name not in only:
            continue
        if isinstance(content, pl.DataFrame):
            session.register(name, content.to_arrow())
        elif callable(content):
            session.register(name, content())
        else:
            asset, shards, table = content
            paths = [file_name(store, asset, shard, table) for shard in shards]
            try:
                session.execute(
                    f'CREATE VIEW "{name}" AS SELECT * EXCLUDE filename FROM {parquet(paths)}'
                )
            except duckdb.Error as error:
                reason = str(error).splitlines()[0]
                if not store.is_local:
                    _look(store, asset, shards, table)
                    raise ConnectionError(f"{asset}: DuckDB can't read it: {reason}") from None
                raise TableError(
                    f"{asset}: a file has gone or is damaged ({reason}); "
                    f"materialise {asset} for its shard again"
                ) from None
    return session


def summary(store: TableStore, asset: str, shard: str, figures: Sequence[str]) -> pl.DataFrame:
    """One row with these figures of a partition's manifest."""
    there = store.require(asset, shard).summary
    return pl.DataFrame([{name: there[name] for name in figures}], infer_schema_length=None)
