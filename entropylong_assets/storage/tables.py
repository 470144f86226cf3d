"""Parquet tables of the stages, on any fsspec URI.

Layout under a `data_uri`:

    <corpus or dataset>/<stage>/<shard>/manifest.json                  what is visible
    <corpus or dataset>/<stage>/<shard>/checks.json                    outcomes of its checks
    <corpus or dataset>/<stage>/<shard>/<table>-<hash of bytes>.parquet

A partition appears whole or not at all: its files are written first, under names taken from
their bytes, and become visible with one put of the manifest. Readers go by the manifest alone, so
a killed writer leaves nothing but files that nobody reads and that a later writer removes. On a
local disk two writers of one partition publish one after the other, under a lock. On object
storage there is no lock: the last manifest wins, and files are left alone for an hour.
A stage over all shards has the one partition `WHOLE`.
"""

from __future__ import annotations

import errno
import functools
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from entropylong_assets.storage.folders import locked, own_folder, temporary_folder
from entropylong_assets.storage.known_files import KnownFiles
from entropylong_assets.storage.manifest import (
    CheckOutcome,
    CheckRecord,
    Manifest,
    TableError,
)
from entropylong_assets.storage.object_storage import open_uri
from entropylong_assets.storage.partition_writer import PartitionWriter
from entropylong_assets.storage.schemas import S, TableSet

WHOLE = "all"
"""Name of the only partition of a stage over all shards."""

MANIFEST, CHECKS = "manifest.json", "checks.json"

DEFAULT_CORPUS, DEFAULT_DATASET = "corpus", "dataset"
"""Names of the corpus and the dataset of a settings file that names none."""

UNLOCKED_FOR = timedelta(hours=1)
"""Time that a writer on object storage has from its first file to the manifest that names it."""


def _remove_unfinished(folder: Path) -> None:
    """Remove what killed puts left in a locked folder."""
    for path in folder.glob(".put-*"):
        path.unlink(missing_ok=True)


class TableStore:
    """The tables of one corpus, and of one dataset over it."""

    def __init__(
        self, uri: str, corpus: str = DEFAULT_CORPUS, dataset: str = DEFAULT_DATASET
    ) -> None:
        self.fs, self.root = open_uri(uri)
        self.uri = uri
        self.corpus, self.dataset = corpus, dataset

    @functools.cached_property
    def known_files(self) -> KnownFiles:
        return KnownFiles(self.fs)

    @property
    def is_local(self) -> bool:
        protocol = self.fs.protocol
        return "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    def home(self, tables: TableSet[Any]) -> str:
        """Folder of the corpus or dataset that the tables belong to, on `self.fs`."""
        return f"{self.root}/{self.corpus if tables.scope == 'corpus' else self.dataset}"

    @property
    def corpus_uri(self) -> str:
        """URI of the corpus' folder."""
        return f"{self.uri}/{self.corpus}"

    @property
    def dataset_uri(self) -> str:
        """URI of the dataset's folder."""
        return f"{self.uri}/{self.dataset}"

    def folder(self, tables: TableSet[Any], shard: str = WHOLE) -> str:
        return f"{self.home(tables)}/{tables.name}/{shard}"

    def put(self, path: str, content: bytes) -> None:
        """Writes a small file so that it appears whole or not at all."""
        folder = path.rpartition("/")[0]
        self.fs.makedirs(folder, exist_ok=True)
        with locked(folder) if self.is_local else nullcontext():
            self._put(path, content)

    def _put(self, path: str, content: bytes) -> None:
        """The same in a folder that is there and, where it is local, locked."""
        if not self.is_local:
            self.fs.pipe_file(path, content)
            return
        target = Path(path)
        _remove_unfinished(target.parent)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".put-", delete=False) as file:
            part = Path(file.name)
            try:
                file.write(content)
                file.flush()
                part.chmod(0o644)
                part.replace(target)
            except BaseException:
                part.unlink(missing_ok=True)
                raise

    @contextmanager
    def write(
        self,
        tables: TableSet[Any],
        shard: str,
        *,
        fingerprint: str,
        determinants: Mapping[str, Any] = {},
    ) -> Iterator[PartitionWriter]:
        """Writes one partition; it becomes visible, and replaces the old one, at the end.

        An exception inside leaves the old partition as it was.
        """
        folder = self.folder(tables, shard)
        self.fs.makedirs(folder, exist_ok=True)
        with self._staging(folder) as staging:
            writer = PartitionWriter(tables, staging)
            try:
                yield writer
            except BaseException:
                writer.abort()
                raise
            files = writer.close()
            manifest = Manifest(
                asset=tables.name,
                shard=shard,
                format_version=tables.format_version,
                fingerprint=fingerprint,
                determinants=dict(determinants),
                tables={name: file for name, (_, file) in files.items()},
                summary=writer.summary,
            )
            with locked(folder) if self.is_local else nullcontext():
                self._publish(folder, tables, manifest, [path for path, _ in files.values()])

    @contextmanager
    def _staging(self, folder: str) -> Iterator[Path]:
        """A local folder for files in the making, on the disk of a local store."""
        if self.is_local:
            with locked(folder):
                _remove_unfinished(Path(folder))
            parent, prefix = Path(folder), ".staging-"
        else:
            parent, prefix = temporary_folder(), "staging-"
        with own_folder(parent, prefix) as staging:
            yield staging

    def _publish(
        self, folder: str, tables: TableSet[Any], manifest: Manifest, paths: list[Path]
    ) -> None:
        for path, table in zip(paths, manifest.tables.values(), strict=True):
            target = f"{folder}/{table.file}"
            if self.is_local:
                path.replace(target)
            else:
                self.fs.put_file(str(path), target)
        try:
            before = self.manifest(tables, manifest.shard)
        except TableError:  # damaged: what it named can't be read anyway
            before = None
        self._put(f"{folder}/{MANIFEST}", manifest.model_dump_json(indent=2).encode())
        self._remove_old(folder, keep=[m for m in (before, manifest) if m])

    def _remove_old(self, folder: str, keep: list[Manifest]) -> None:
        """Removes files of generations before the last: a reader may still hold the last one.

        Without a lock a young file may be another writer's, whose manifest is about to name it.
        """
        kept = {table.file for manifest in keep for table in manifest.tables.values()}
        # By the store's own clock: the manifest has just been put.
        now = self.fs.modified(f"{folder}/{MANIFEST}")
        for path in self.fs.ls(folder, detail=False, refresh=True):
            name = path.rstrip("/").rpartition("/")[2]
            if not name.endswith(".parquet") or name in kept:
                continue
            with suppress(FileNotFoundError):  # another writer has just removed it
                if self.is_local or now - self.fs.modified(path) > UNLOCKED_FOR:
                    self.fs.rm(path)

    def manifest(self, tables: TableSet[Any], shard: str = WHOLE) -> Manifest | None:
        """The visible partition, or None where there is none yet.

        Raises TableError where its manifest is damaged.
        """
        path = f"{self.folder(tables, shard)}/{MANIFEST}"
        try:
            return Manifest.model_validate_json(self.fs.cat_file(path))
        except FileNotFoundError:
            return None
        except ValidationError:
            raise TableError(
                f"{tables.name}, {shard}: {path} is damaged or of another version; materialize it "
                "again"
            ) from None

    def require(self, tables: TableSet[Any], shard: str = WHOLE) -> Manifest:
        """The visible partition. Raises TableError where it is not there."""
        manifest = self.manifest(tables, shard)
        if manifest is None:
            raise TableError(f"{tables.name}, {shard}: not materialized yet; materialize it first")
        if manifest.format_version != tables.format_version:
            raise TableError(
                f"{tables.name}, {shard}: written in format {manifest.format_version}, but this "
                f"version reads {tables.format_version}; materialize it again"
            )
        return manifest

    def summary(self, tables: TableSet[S], shard: str = WHOLE) -> S:
        """Counts and figures of a visible partition. Raises TableError if there is none."""
        return tables.summary.model_validate(self.require(tables, shard).summary)

    # Outcomes of checks

    def check_outcomes(self, tables: TableSet[Any], shard: str = WHOLE) -> dict[str, CheckOutcome]:
        """Outcomes of the checks that ran on the partition as it is now, by name of the check."""
        manifest, record = self.manifest(tables, shard), self._check_record(tables, shard)
        return record.outcomes if manifest and record and record.belongs_to(manifest) else {}

    def record_checks(
        self, tables: TableSet[Any], shard: str, outcomes: Mapping[str, CheckOutcome]
    ) -> None:
        """Store outcomes beside the manifest; others of the same manifest are kept."""
        folder = self.folder(tables, shard)
        with locked(folder) if self.is_local else nullcontext():
            manifest = self.require(tables, shard)
            known = self.check_outcomes(tables, shard)
            record = CheckRecord(
                fingerprint=manifest.fingerprint,
                data_version=manifest.data_version,
                outcomes=dict(sorted({**known, **outcomes}.items())),
            )
            self._put(f"{folder}/{CHECKS}", record.model_dump_json(indent=2).encode())

    def _check_record(self, tables: TableSet[Any], shard: str) -> CheckRecord | None:
        """The stored record. A damaged one counts as none: the checks then run again."""
        try:
            path = f"{self.folder(tables, shard)}/{CHECKS}"
            return CheckRecord.model_validate_json(self.fs.cat_file(path))
        except (FileNotFoundError, ValidationError):
            return None

    def shards(self, tables: TableSet[Any]) -> list[str]:
        """Names of the visible partitions of an asset, sorted. A listing that fails is raised.

        On object storage all files of the asset are listed, one request for 1,000 of them (some
        200 shards); folder by folder it would be one request a shard.
        """
        # No glob: the URI itself may hold its special characters.
        folder = f"{self.home(tables)}/{tables.name}"
        files = self.fs.find(folder, maxdepth=2 if self.is_local else None)
        depth = folder.count("/") + 2
        return sorted(
            path.split("/")[-2]
            for path in files
            if path.endswith(f"/{MANIFEST}") and path.count("/") == depth
        )

    @contextmanager
    def reporting_damage(self, tables: TableSet[Any], shard: str, table: str) -> Iterator[None]:
        """Raises TableError where a table's file has gone or is damaged; else what is raised."""
        try:
            yield
        except FileNotFoundError:
            raise TableError(
                f"{tables.name}, {shard}: {self.path(tables, shard, table)} has gone; materialize "
                f"{tables.name} for {shard} again"
            ) from None
        except (pa.ArrowInvalid, OSError) as error:
            # pyarrow tells damage (a checksum, a header) by an OSError without a number; what the
            # system or s3fs raises has one, or a class of its own. EINVAL: object storage has no
            # such range, as the object is shorter.
            damage = type(error) is OSError and error.errno in (None, errno.EINVAL)
            if isinstance(error, OSError) and not damage:
                raise
            raise TableError(
                f"{tables.name}, {shard}: {self.path(tables, shard, table)} is damaged "
                f"({str(error).splitlines()[0]}); materialize {tables.name} for {shard} again"
            ) from None

    def open(self, tables: TableSet[Any], shard: str, table: str) -> Any:
        """A table's file."""
        file = self.require(tables, shard).tables[table]
        path = f"{self.folder(tables, shard)}/{file.file}"
        # Parquet asks for the ranges that it needs: no look at the size before, no reading ahead.
        exact = {} if self.is_local else {"size": file.bytes, "cache_type": "none"}
        return self.fs.open(path, "rb", **exact)

    def path(self, tables: TableSet[Any], shard: str, table: str) -> str:
        """Path of a table's file on `self.fs`."""
        return f"{self.folder(tables, shard)}/{self.require(tables, shard).tables[table].file}"

    def read(
        self, tables: TableSet[Any], shard: str, table: str, columns: list[str] | None = None
    ) -> pl.DataFrame:
        """A table, or some of its columns, in memory; an optional one may be empty."""
        if table in tables.optional and table not in self.require(tables, shard).tables:
            empty = pl.DataFrame(schema=pl.Schema(tables.schemas[table]))
            return empty.select(columns) if columns else empty
        with self.reporting_damage(tables, shard, table), self.open(tables, shard, table) as file:
            frame = pl.from_arrow(
                pq.read_table(file, columns=columns, page_checksum_verification=True)
            )
        assert isinstance(frame, pl.DataFrame)
        return frame

    def read_all(
        self,
        tables: TableSet[Any],
        shards: Iterable[str],
        table: str,
        columns: list[str] | None = None,
    ) -> pl.DataFrame:
        """A table of several shards, one below the other, in memory."""
        return pl.concat(self.read(tables, shard, table, columns) for shard in shards)

    def batches(
        self,
        tables: TableSet[Any],
        shard: str,
        table: str,
        columns: list[str] | None = None,
        rows: int = 1024,
    ) -> Iterator[pl.DataFrame]:
        """A table in batches of at most `rows` rows, so that memory stays bounded."""
        with self.reporting_damage(tables, shard, table), self.open(tables, shard, table) as file:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            for batch in parquet.iter_batches(batch_size=rows, columns=columns):
                frame = pl.from_arrow(batch)
                assert isinstance(frame, pl.DataFrame)
                yield frame

    def head(
        self,
        tables: TableSet[Any],
        shard: str,
        table: str,
        columns: list[str] | None = None,
        rows: int = 5,
    ) -> pl.DataFrame:
        """The first rows of a table, as the UI shows them."""
        empty = pl.DataFrame(schema=pl.Schema(tables.schemas[table]))
        first = next(self.batches(tables, shard, table, columns, rows), empty)
        return first.select(columns) if columns else first
