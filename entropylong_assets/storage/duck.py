"""DuckDB sessions over the tables.

The database is in memory, so no database file can stay locked or remain after a crash.
"""

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
"""One of: (tables, shards, table); a frame in memory; or a function that returns rows, called only
if the query names the view. A `pa.RecordBatchReader` can be read only once."""

Views = Mapping[str, View]
"""Views by their name in SQL."""

MEMORY = "1GB"
"""Memory limit of a session. What exceeds it is written to a temporary folder."""


def _quoted(text: str) -> str:
    return text.replace("'", "''")


def file_name(store: TableStore, tables: TableSet[Any], shard: str, table: str) -> str:
    """Return the path or URI of a table's file, as DuckDB reads it."""
    file = store.require(tables, shard).tables[table]
    path = f"{store.folder(tables, shard)}/{file.file}"
    return path if store.is_local else store.known_files.add(path, file.bytes)


def parquet(paths: Sequence[str]) -> str:
    """Return SQL that reads these files as one table, with the file of each row in `filename`."""
    literals = ", ".join(f"'{_quoted(path)}'" for path in paths)
    return f"read_parquet([{literals}], filename = true)"


def _verify_files(store: TableStore, views: Views, *, every_page: bool) -> None:
    """Raise TableError if a file of a view is missing or damaged.

    every_page: read the files completely, not only their footers.
    """
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
            if every_page:
                for _ in store.batches(tables, shard, table):
                    pass


# What DuckDB raises if a file is damaged or can't be read; other classes are about the query.
_FILE_ERRORS = (duckdb.Error, duckdb.IOException, duckdb.InvalidInputException)


@contextmanager
def reporting_damage(store: TableStore, views: Views) -> Iterator[None]:
    """Translate the errors of a session and its queries.

    DuckDB raises the same error for a damaged file, a missing file and a network fault. Inside this
    context manager the first two raise TableError, and the third, possible if the store is not
    local, raises ConnectionError, which is transient. An error in the query is raised unchanged.
    """
    try:
        yield
    except duckdb.Error as error:
        if type(error) not in _FILE_ERRORS:
            raise
        lines = str(error).splitlines() or [type(error).__name__]
        # An error raised by a Python file object is reported as its traceback. It says nothing
        # about the content, so the pages need not be verified.
        from_python = lines[0].startswith("Traceback")
        _verify_files(store, views, every_page=not from_python)
        if store.is_local or isinstance(error, duckdb.InvalidInputException):
            raise
        reason = lines[-1 if from_python else 0]
        raise ConnectionError(f"DuckDB can't read {store.uri}: {reason}") from None


def connect(store: TableStore, views: Views, only: str | None = None) -> duckdb.DuckDBPyConnection:
    """Open a session that has these views.

    only: a query; the session has only the views that it names. Data that exceeds the memory limit
    is written to a folder of the session, readable only by this user. The folder is removed
    with the session or, if the process was killed, when the next session starts. Raises the errors
    of `reporting_damage`.
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
    """Open a session with `connect`; its queries raise the errors of `reporting_damage`."""
    with reporting_damage(store, views), connect(store, views, only) as session:
        yield session


def rounded(value: Any) -> Any:
    """Return a float with 6 decimals, any other value as it is."""
    return round(value, 6) if isinstance(value, float) else value


def rounded_rows(session: duckdb.DuckDBPyConnection, query: str) -> list[dict[str, Any]]:
    """Return the rows of a query as dictionaries, with floats `rounded`."""
    result = session.execute(query)
    names = [column[0] for column in result.description]
    return [{n: rounded(v) for n, v in zip(names, row, strict=True)} for row in result.fetchall()]


def summary(
    store: TableStore, tables: TableSet[Any], shard: str, figures: Sequence[str]
) -> pl.DataFrame:
    """Return one row with these figures of a partition's summary."""
    values = store.require(tables, shard).summary
    return pl.DataFrame([{name: values[name] for name in figures}], infer_schema_length=None)
