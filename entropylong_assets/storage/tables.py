"""Parquet tables of the stages, on any fsspec URI.

Layout under a `data_uri`:

    <corpus or dataset>/<stage>/<shard>/manifest.json                  names the visible files
    <corpus or dataset>/<stage>/<shard>/checks.json                    outcomes of its checks
    <corpus or dataset>/<stage>/<shard>/<table>-<hash of bytes>.parquet

A partition is published as a whole or not at all. Its files are written first, under names derived
from their content, and become visible when the manifest is replaced. Readers read only the files
that the manifest names, so a killed writer leaves only unused files, which a later writer removes.
On a local disk, a lock serializes writers that publish the same partition. Object storage has no
locks: the last manifest wins, and unused files are kept for an hour.

A stage over all shards has the single partition `WHOLE`.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from entropylong_assets.storage.folders import locked, own_folder, replace_file, temporary_folder
from entropylong_assets.storage.known_files import KnownFiles
from entropylong_assets.storage.manifest import CheckOutcome, CheckRecord, Manifest, TableError
from entropylong_assets.storage.object_storage import open_uri
from entropylong_assets.storage.partition_writer import PartitionWriter
from entropylong_assets.storage.removals import find_removed
from entropylong_assets.storage.schemas import S, TableSet

WHOLE = "all"
"""Name of the only partition of a stage over all shards."""

MANIFEST, CHECKS = "manifest.json", "checks.json"

DEFAULT_CORPUS, DEFAULT_DATASET = "corpus", "dataset"
"""Names of the corpus and the dataset if the settings file names none."""

UNLOCKED_FOR = timedelta(hours=1)
"""Maximum time between a writer's first file on object storage and its manifest."""


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
        """File system through which DuckDB reads tables that are not local."""
        return KnownFiles(self.fs)

    @property
    def is_local(self) -> bool:
        """Whether the tables are on a local disk, where folders can be locked."""
        protocol = self.fs.protocol
        return "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    def home(self, tables: TableSet[Any]) -> str:
        """Return the path, on `self.fs`, of the corpus or dataset that the tables belong to."""
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
        """Return the path of a partition on `self.fs`."""
        return f"{self.home(tables)}/{tables.name}/{shard}"

    def put(self, path: str, content: bytes) -> None:
        """Write a small file, so that it appears as a whole or not at all."""
        folder = path.rpartition("/")[0]
        self.fs.makedirs(folder, exist_ok=True)
        with locked(folder) if self.is_local else nullcontext():
            self._put(path, content)

    def _put(self, path: str, content: bytes) -> None:
        """Write a small file into an existing folder. The caller holds the lock of a local one."""
        if self.is_local:
            replace_file(Path(path), content)
        else:
            self.fs.pipe_file(path, content)

    @contextmanager
    def write(
        self,
        tables: TableSet[Any],
        shard: str,
        *,
        fingerprint: str,
        determinants: Mapping[str, Any] = {},
    ) -> Iterator[PartitionWriter]:
        """Write one partition, which replaces the previous one at the end.

        An exception inside the context leaves the previous partition unchanged.
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
        """Make a local folder for unpublished files, for a local store on the same disk."""
        if self.is_local:
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
        except TableError:  # damaged, so the files that it named can't be read anyway
            before = None
        self._put(f"{folder}/{MANIFEST}", manifest.model_dump_json(indent=2).encode())
        self._remove_old(folder, keep=[m for m in (before, manifest) if m])

    def _remove_old(self, folder: str, keep: list[Manifest]) -> None:
        """Remove files that no manifest in `keep` names. A reader may still use the previous one's.

        Without a lock, a recent file may belong to another writer, whose manifest will name it.
        """
        kept = {table.file for manifest in keep for table in manifest.tables.values()}
        # The manifest has just been written, so its time is the present one by the store's clock.
        now = self.fs.modified(f"{folder}/{MANIFEST}")
        for path in self.fs.ls(folder, detail=False, refresh=True):
            name = path.rstrip("/").rpartition("/")[2]
            if not name.endswith(".parquet") or name in kept:
                continue
            with suppress(FileNotFoundError):  # another writer has just removed it
                if self.is_local or now - self.fs.modified(path) > UNLOCKED_FOR:
                    self.fs.rm(path)

    def manifest(self, tables: TableSet[Any], shard: str = WHOLE) -> Manifest | None:
        """Return the manifest of a partition, or None if it was never published.

        Raises TableError if the manifest is damaged.
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
        """Return the manifest of a partition. Raises TableError if there is none to be read."""
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
        """Return the summary of a partition. Raises TableError if it was never published."""
        return tables.summary.model_validate(self.require(tables, shard).summary)

    # Outcomes of checks

    def check_outcomes(self, tables: TableSet[Any], shard: str = WHOLE) -> dict[str, CheckOutcome]:
        """Return the outcomes of the checks that ran on the published partition, by check name.

        A damaged record counts as missing, so that the checks run again.
        """
        manifest = self.manifest(tables, shard)
        try:
            content = self.fs.cat_file(f"{self.folder(tables, shard)}/{CHECKS}")
            record = CheckRecord.model_validate_json(content)
        except (FileNotFoundError, ValidationError):
            return {}
        return record.outcomes if manifest and record.belongs_to(manifest) else {}

    def record_checks(
        self, tables: TableSet[Any], shard: str, outcomes: Mapping[str, CheckOutcome]
    ) -> None:
        """Store outcomes beside the manifest. Other outcomes of the same manifest are kept."""
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

    def shards(self, tables: TableSet[Any]) -> list[str]:
        """Return the sorted names of the published partitions of shards that are not retired.

        Raises the error of a listing.

        On object storage all files of the stage are listed, with one request per 1,000 files (about
        200 shards). Listing folder by folder would take one request per shard.
        """
        # Not `glob`, because the URI itself may contain its special characters.
        folder = f"{self.home(tables)}/{tables.name}"
        files = self.fs.find(folder, maxdepth=2 if self.is_local else None)
        depth = folder.count("/") + 2
        published = [path for path in files if path.endswith(f"/{MANIFEST}")]
        names = {path.split("/")[-2] for path in published if path.count("/") == depth}
        removed = find_removed(self) if names else None
        return sorted(name for name in names if not (removed and removed.hides(name)))

    @contextmanager
    def reporting_damage(self, tables: TableSet[Any], shard: str, table: str) -> Iterator[None]:
        """Raise TableError if a table's file is missing or damaged; other errors are unchanged."""
        try:
            yield
        except FileNotFoundError:
            raise TableError(
                f"{tables.name}, {shard}: {self.path(tables, shard, table)} is missing; "
                f"materialize {tables.name} for {shard} again"
            ) from None
        except (pa.ArrowInvalid, OSError) as error:
            # For damage (a checksum, a header) pyarrow raises a plain OSError without an errno. The
            # system and s3fs raise a subclass or set errno. EINVAL means that the object in storage
            # is shorter than the requested range.
            damage = type(error) is OSError and error.errno in (None, errno.EINVAL)
            if isinstance(error, OSError) and not damage:
                raise
            raise TableError(
                f"{tables.name}, {shard}: {self.path(tables, shard, table)} is damaged "
                f"({str(error).splitlines()[0]}); materialize {tables.name} for {shard} again"
            ) from None

    def open(self, tables: TableSet[Any], shard: str, table: str) -> Any:
        """Open a table's file."""
        file = self.require(tables, shard).tables[table]
        path = f"{self.folder(tables, shard)}/{file.file}"
        # The size is known, and Parquet requests exactly the ranges that it needs.
        exact = {} if self.is_local else {"size": file.bytes, "cache_type": "none"}
        return self.fs.open(path, "rb", **exact)

    def path(self, tables: TableSet[Any], shard: str, table: str) -> str:
        """Return the path of a table's file on `self.fs`."""
        return f"{self.folder(tables, shard)}/{self.require(tables, shard).tables[table].file}"

    def read(
        self, tables: TableSet[Any], shard: str, table: str, columns: list[str] | None = None
    ) -> pl.DataFrame:
        """Read a table, or some of its columns. An optional table without a file has no rows."""
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
        """Read a table of several shards as one frame."""
        return pl.concat(self.read(tables, shard, table, columns) for shard in shards)

    def batches(
        self,
        tables: TableSet[Any],
        shard: str,
        table: str,
        columns: list[str] | None = None,
        rows: int = 1024,
    ) -> Iterator[pl.DataFrame]:
        """Read a table in batches of at most `rows` rows, which bounds the memory."""
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
        """Read the first rows of a table."""
        empty = pl.DataFrame(schema=pl.Schema(tables.schemas[table]))
        first = next(self.batches(tables, shard, table, columns, rows), empty)
        return first.select(columns) if columns else first
