"""DuckDB over the tables: in memory, so that no file of its own can be locked or left behind."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from entropylong_assets.storage.folders import own_folder, temporary_folder
from entropylong_assets.storage.schemas import TableSet
from entropylong_assets.storage.tables import TableStore

View = (
    tuple[TableSet[Any], Sequence[str], str]
    | pl.DataFrame
    | Callable[[], "pa.RecordBatchReader | pa.Table | pl.DataFrame"]
)
"""(tables, shards, table); or a frame in memory; or a function that gives rows, called only if the
query names the view. A stream of rows can be read once."""

Views = Mapping[str, View]


MEMORY = "1GB"
"""What a query may hold; the rest it puts on disk."""


def _quoted(text: str) -> str:
    return text.replace("'", "''")


def file_name(store: TableStore, tables: TableSet[Any], shard: str, table: str) -> str:
    """A table's file as DuckDB reads it."""
    file = store.require(tables, shard).tables[table]
    path = f"{store.folder(tables, shard)}/{file.file}"
    return path if store.is_local else store.known_files.add(path, file.bytes)


def parquet(paths: Sequence[str]) -> str:
    """These files as one table, in SQL; its column `filename` tells them apart."""
    literals = ", ".join(f"'{_quoted(path)}'" for path in paths)
    return f"read_parquet([{literals}], filename = true)"


def _look(store: TableStore, views: Views, *, whole: bool) -> None:
    """Raises TableError if a file of a view has gone or is damaged. whole: every page is read."""
    for view in views.values():
        if not isinstance(view, tuple):
            continue
        tables, shards, table = view
        for shard in shards:
            with (
                store.reporting_damage(tables, shard, table),
                store.open(tables, shard, table) as file,
            ):
                pq.read_metadata(file)
            if whole:
                for _ in store.batches(tables, shard, table):
                    pass


# What DuckDB raises where a file is damaged or can't be read; all else is about the query.
_OF_FILES = (duckdb.Error, duckdb.IOException, duckdb.InvalidInputException)


@contextmanager
def reporting_damage(store: TableStore, views: Views) -> Iterator[None]:
    """Around a session and its queries: DuckDB has one error for a damaged file, one that has gone
    and a fault of the network.

    Raises TableError where a file of the views has gone or is damaged, and ConnectionError, which
    is worth another try, where a store that is not local gave no answer. An error of the query
    stays what it is.
    """
    try:
        yield
    except duckdb.Error as error:
        if type(error) not in _OF_FILES:
            raise
        lines = str(error).splitlines() or [type(error).__name__]
        # What a file of Python raised comes as its traceback; then the content is not in question.
        from_python = lines[0].startswith("Traceback")
        _look(store, views, whole=not from_python)
        if store.is_local or isinstance(error, duckdb.InvalidInputException):
            raise
        reason = lines[-1 if from_python else 0]
        raise ConnectionError(f"DuckDB can't read {store.uri}: {reason}") from None


def connect(store: TableStore, views: Views, only: str | None = None) -> duckdb.DuckDBPyConnection:
    """A session that has these views, or those of them that the query `only` names.

    What does not fit into its memory goes into a folder of its own, readable by this user alone,
    that ends with the session or, after a kill, when the next one starts. Raises as
    `reporting_damage`.
    """
    stack = ExitStack()
    folder = stack.enter_context(own_folder(temporary_folder(), "duckdb-"))
    session = duckdb.connect(
        ":memory:", config={"threads": 2, "memory_limit": MEMORY, "temp_directory": str(folder)}
    )
    weakref.finalize(session, stack.close)
    if not store.is_local:
        session.register_filesystem(store.known_files)
    for name, content in views.items():
        if only is not None and name not in only:
            continue
        if isinstance(content, pl.DataFrame):
            session.register(name, content.to_arrow())
        elif callable(content):
            rows = content()
            session.register(name, rows.to_arrow() if isinstance(rows, pl.DataFrame) else rows)
        else:
            tables, shards, table = content
            paths = [file_name(store, tables, shard, table) for shard in shards]
            with reporting_damage(store, {name: content}):
                session.execute(
                    f'CREATE VIEW "{name}" AS SELECT * EXCLUDE filename FROM {parquet(paths)}'
                )
    return session


@contextmanager
def querying(
    store: TableStore, views: Views, only: str | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A session as `connect` gives it, whose queries raise as `reporting_damage`."""
    with reporting_damage(store, views), connect(store, views, only) as session:
        yield session


def summary(
    store: TableStore, tables: TableSet[Any], shard: str, figures: Sequence[str]
) -> pl.DataFrame:
    """One row with these figures of a partition's summary."""
    found = store.require(tables, shard).summary
    return pl.DataFrame([{name: found[name] for name in figures}], infer_schema_length=None)
