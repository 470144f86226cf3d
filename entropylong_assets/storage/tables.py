"""Parquet tables of the assets, on any fsspec URI.

Layout, for a pipeline whose data is kept under `<data_uri>`:

    <data_uri>/<asset>/<shard>/manifest.json                  what is visible
    <data_uri>/<asset>/<shard>/<table>-<hash of bytes>.parquet

A partition appears whole or not at all: its files are written first, under names taken from
their bytes, and become visible with one put of the manifest. Readers go by the manifest alone, so
that a killed writer leaves nothing but files which nobody reads and the next writer removes.
An asset over all shards has the one partition `WHOLE`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from entropylong_assets.storage.schemas import FORMAT_VERSION, TABLES

WHOLE = "all"
"""Name of the only partition of an asset over all shards."""

MANIFEST = "manifest.json"


class TableError(ValueError):
    """A table is missing, stale or damaged. The message is one line and says what to do."""


class TableFile(BaseModel):
    """One Parquet file of a partition."""

    model_config = ConfigDict(frozen=True)

    file: str
    rows: int
    bytes: int
    sha256: str


class Manifest(BaseModel):
    """What a partition holds, and what it was made from."""

    model_config = ConfigDict(frozen=True)

    asset: str
    shard: str
    format_version: int = FORMAT_VERSION
    fingerprint: str
    """Of all that determines the content: settings, code version, upstream data versions."""
    determinants: dict[str, Any]
    tables: dict[str, TableFile]
    summary: dict[str, Any]
    """Counts and figures of the partition; every drop under its reason."""

    @property
    def data_version(self) -> str:
        """16 hex digits of the content: equal for equal bytes, whoever made them."""
        parts = sorted((name, table.sha256) for name, table in self.tables.items())
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _encodings(schema: pa.Schema) -> dict[str, Any]:
    """Token ids split by byte, all else by dictionary: for ids a dictionary of the vocabulary
    takes 2.5 times as long to write and read and is larger (34 MB of ids: 11.9 against 10.3)."""
    paths = {
        f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name: field.type
        for field in schema
    }
    ids = [
        p for p, kind in paths.items() if pa.types.is_list(kind) and kind.value_type == pa.uint32()
    ]
    return {
        "use_dictionary": [path for path in paths if path not in ids],
        "column_encoding": dict.fromkeys(ids, "BYTE_STREAM_SPLIT"),
    }


class PartitionWriter:
    """Writes the tables of one partition, batch by batch. Made by `TableStore.write`."""

    def __init__(self, asset: str, folder: Path) -> None:
        self._schemas = TABLES[asset]
        self._folder = folder
        self._writers: dict[str, pq.ParquetWriter] = {}
        self.rows = dict.fromkeys(self._schemas, 0)
        self.summary: dict[str, Any] = {}

    def append(self, table: str, rows: pl.DataFrame | list[dict[str, Any]]) -> None:
        """Adds rows, cast to the table's schema. Raises TableError where they don't fit it."""
        schema = self._schemas[table]
        try:
            if isinstance(rows, pl.DataFrame):
                arrow = rows.select(schema.names).to_arrow().cast(schema)
            else:
                arrow = pa.Table.from_pylist(rows, schema=schema)
        except (pa.ArrowException, pl.exceptions.PolarsError, TypeError) as error:
            raise TableError(f"table {table}: rows don't fit its schema: {error}") from error
        for field, column in zip(schema, arrow.columns, strict=True):
            if not field.nullable and column.null_count:
                raise TableError(f"table {table}: column {field.name} has nulls")
        self._writer(table).write_table(arrow)
        self.rows[table] += len(arrow)

    def _writer(self, table: str) -> pq.ParquetWriter:
        if table not in self._writers:
            schema = self._schemas[table]
            self._writers[table] = pq.ParquetWriter(
                self._folder / table, schema, compression="zstd", **_encodings(schema)
            )
        return self._writers[table]

    def close(self) -> dict[str, tuple[Path, TableFile]]:
        """Ends all files; empty tables get a file too. Returns them by table."""
        files = {}
        for table in self._schemas:
            self._writer(table).close()
            path = self._folder / table
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            files[table] = (
                path,
                TableFile(
                    file=f"{table}-{digest[:16]}.parquet",
                    rows=self.rows[table],
                    bytes=path.stat().st_size,
                    sha256=digest,
                ),
            )
        return files

    def abort(self) -> None:
        for writer in self._writers.values():
            writer.close()


class TableStore:
    """All tables under one URI."""

    def __init__(self, uri: str) -> None:
        self.fs, self.root = fsspec.core.url_to_fs(uri)
        self.uri = uri

    @property
    def is_local(self) -> bool:
        protocol = self.fs.protocol
        return "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    def folder(self, asset: str, shard: str = WHOLE) -> str:
        return f"{self.root}/{asset}/{shard}"

    def put(self, path: str, content: bytes) -> None:
        """Writes a small file so that it appears whole or not at all."""
        self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        if not self.is_local:
            self.fs.pipe_file(path, content)
            return
        target = Path(path)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".put-", delete=False) as file:
            file.write(content)
        Path(file.name).chmod(0o644)
        Path(file.name).replace(target)

    @contextmanager
    def write(
        self,
        asset: str,
        shard: str,
        *,
        fingerprint: str,
        determinants: Mapping[str, Any] = {},
    ) -> Iterator[PartitionWriter]:
        """Writes one partition; it becomes visible, and replaces the old one, at the end.

        An exception inside leaves the old partition as it was.
        """
        folder = self.folder(asset, shard)
        self.fs.makedirs(folder, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=folder if self.is_local else None))
        try:
            writer = PartitionWriter(asset, staging)
            try:
                yield writer
            except BaseException:
                writer.abort()
                raise
            files = writer.close()
            for path, table in files.values():
                target = f"{folder}/{table.file}"
                if self.is_local:
                    path.replace(target)
                else:
                    self.fs.put_file(str(path), target)
            manifest = Manifest(
                asset=asset,
                shard=shard,
                fingerprint=fingerprint,
                determinants=dict(determinants),
                tables={name: table for name, (_, table) in files.items()},
                summary=writer.summary,
            )
            before = self.manifest(asset, shard)
            self.put(f"{folder}/{MANIFEST}", manifest.model_dump_json(indent=2).encode())
            self._remove_old(folder, keep=[m for m in (before, manifest) if m])
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _remove_old(self, folder: str, keep: list[Manifest]) -> None:
        """Removes files of generations before the last: a reader may still hold the last one."""
        kept = {table.file for manifest in keep for table in manifest.tables.values()}
        for path in self.fs.ls(folder, detail=False, refresh=True):
            name = path.rstrip("/").rpartition("/")[2]
            if name.endswith(".parquet") and name not in kept:
                self.fs.rm(path)

    def manifest(self, asset: str, shard: str = WHOLE) -> Manifest | None:
        """The visible partition, or None where there is none yet."""
        path = f"{self.folder(asset, shard)}/{MANIFEST}"
        try:
            return Manifest.model_validate_json(self.fs.cat_file(path))
        except FileNotFoundError:
            return None

    def require(self, asset: str, shard: str = WHOLE) -> Manifest:
        """The visible partition. Raises TableError where it is not there."""
        manifest = self.manifest(asset, shard)
        if manifest is None:
            raise TableError(f"{asset}, {shard}: not materialised yet; materialise it first")
        if manifest.format_version != FORMAT_VERSION:
            raise TableError(
                f"{asset}, {shard}: written in format {manifest.format_version}, this version "
                f"reads {FORMAT_VERSION}; materialise it again"
            )
        return manifest

    def shards(self, asset: str) -> list[str]:
        """Names of the visible partitions of an asset, sorted."""
        pattern = f"{self.root}/{asset}/*/{MANIFEST}"
        return sorted(path.split("/")[-2] for path in self.fs.glob(pattern))

    def path(self, asset: str, shard: str, table: str) -> str:
        """Path of a table's file on `self.fs`."""
        return f"{self.folder(asset, shard)}/{self.require(asset, shard).tables[table].file}"

    def read(
        self, asset: str, shard: str, table: str, columns: list[str] | None = None
    ) -> pl.DataFrame:
        """A table, or some of its columns, in memory."""
        with self.fs.open(self.path(asset, shard, table), "rb") as file:
            frame = pl.from_arrow(pq.read_table(file, columns=columns))
        assert isinstance(frame, pl.DataFrame)
        return frame

    def batches(
        self, asset: str, shard: str, table: str, columns: list[str] | None = None, rows: int = 1024
    ) -> Iterator[pl.DataFrame]:
        """A table in batches of at most `rows` rows, so that memory stays bounded."""
        with self.fs.open(self.path(asset, shard, table), "rb") as file:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=rows, columns=columns):
                frame = pl.from_arrow(batch)
                assert isinstance(frame, pl.DataFrame)
                yield frame
