"""Parquet tables of the assets, on any fsspec URI.

Layout, for a pipeline whose data is kept under `<data_uri>`:

    <data_uri>/<asset>/<shard>/manifest.json                  what is visible
    <data_uri>/<asset>/<shard>/<table>-<hash of bytes>.parquet

A partition appears whole or not at all: its files are written first, under names taken from
their bytes, and become visible with one put of the manifest. Readers go by the manifest alone, so
that a killed writer leaves nothing but files which nobody reads and a later writer removes. On a
local disk two writers of one partition publish one after the other, under a lock. On object
storage there is none: the last manifest holds, and files are left alone for an hour.
An asset over all shards has the one partition `WHOLE`.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from entropylong_assets.storage.known_files import KnownFiles
from entropylong_assets.storage.object_storage import open_uri
from entropylong_assets.storage.partition_writer import PartitionWriter, TableError, TableFile
from entropylong_assets.storage.schemas import FORMAT_VERSION, OPTIONAL, TABLES

WHOLE = "all"
"""Name of the only partition of an asset over all shards."""

MANIFEST = "manifest.json"

UNLOCKED_FOR = timedelta(hours=1)
"""Time that a writer on object storage has from its first file to the manifest that names it."""


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


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Holds a local folder's lock, which ends with the process at the latest."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _remove_unfinished(folder: Path) -> None:
    """Removes what killed puts left in a locked folder."""
    for path in folder.glob(".put-*"):
        path.unlink(missing_ok=True)


def remove_dead(folder: Path, pattern: str) -> None:
    """Removes the folders that killed processes left in a locked one; a live one holds its own."""
    for path in folder.glob(pattern):
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # its writer has just ended
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(handle)


def temporary_folder() -> Path:
    """This user's folder for temporary ones, so that no one else holds a lock on it."""
    folder = Path(tempfile.gettempdir()) / f"entropylong-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@contextmanager
def own_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder in a local one, which goes at the end; what killed processes left under this
    prefix goes now."""
    with ExitStack() as stack:
        with locked(parent):
            remove_dead(parent, f"{prefix}*")
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            stack.enter_context(locked(folder))
        yield folder


class TableStore:
    """All tables under one URI."""

    def __init__(self, uri: str) -> None:
        self.fs, self.root = open_uri(uri)
        self.uri = uri

    @functools.cached_property
    def known_files(self) -> KnownFiles:
        return KnownFiles(self.fs)

    @property
    def is_local(self) -> bool:
        protocol = self.fs.protocol
        return "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    def folder(self, asset: str, shard: str = WHOLE) -> str:
        return f"{self.root}/{asset}/{shard}"

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
        with self._staging(folder) as staging:
            writer = PartitionWriter(asset, staging)
            try:
                yield writer
            except BaseException:
                writer.abort()
                raise
            files = writer.close()
            manifest = Manifest(
                asset=asset,
                shard=shard,
                fingerprint=fingerprint,
                determinants=dict(determinants),
                tables={name: table for name, (_, table) in files.items()},
                summary=writer.summary,
            )
            with locked(folder) if self.is_local else nullcontext():
                self._publish(folder, manifest, [path for path, _ in files.values()])

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

    def _publish(self, folder: str, manifest: Manifest, paths: list[Path]) -> None:
        for path, table in zip(paths, manifest.tables.values(), strict=True):
            target = f"{folder}/{table.file}"
            if self.is_local:
                path.replace(target)
            else:
                self.fs.put_file(str(path), target)
        try:
            before = self.manifest(manifest.asset, manifest.shard)
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

    def manifest(self, asset: str, shard: str = WHOLE) -> Manifest | None:
        """The visible partition, or None where there is none yet.

        Raises TableError where its manifest is damaged.
        """
        path = f"{self.folder(asset, shard)}/{MANIFEST}"
        try:
            return Manifest.model_validate_json(self.fs.cat_file(path))
        except FileNotFoundError:
            return None
        except ValidationError:
            raise TableError(
                f"{asset}, {shard}: {path} is damaged or of another version; materialise it again"
            ) from None

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
        """Names of the visible partitions of an asset, sorted. A listing that fails is raised.

        On object storage all files of the asset are listed, one request for 1,000 of them (some
        200 shards); folder by folder it would be one request a shard.
        """
        # No glob: the URI itself may hold its special characters.
        folder = f"{self.root}/{asset}"
        files = self.fs.find(folder, maxdepth=2 if self.is_local else None)
        depth = folder.count("/") + 2
        return sorted(
            path.split("/")[-2]
            for path in files
            if path.endswith(f"/{MANIFEST}") and path.count("/") == depth
        )

    @contextmanager
    def telling(self, asset: str, shard: str, table: str) -> Iterator[None]:
        """Raises TableError where a table's file has gone or is damaged; else what is raised."""
        try:
            yield
        except FileNotFoundError:
            raise TableError(
                f"{asset}, {shard}: {self.path(asset, shard, table)} has gone; materialise "
                f"{asset} for {shard} again"
            ) from None
        except (pa.ArrowInvalid, OSError) as error:
            # pyarrow tells damage (a checksum, a header) by an OSError without a number; what the
            # system or s3fs raises has one, or a class of its own. EINVAL: object storage has no
            # such range, as the object is shorter.
            damage = type(error) is OSError and error.errno in (None, errno.EINVAL)
            if isinstance(error, OSError) and not damage:
                raise
            raise TableError(
                f"{asset}, {shard}: {self.path(asset, shard, table)} is damaged "
                f"({str(error).splitlines()[0]}); materialise {asset} for {shard} again"
            ) from None

    def open(self, asset: str, shard: str, table: str) -> Any:
        """A table's file."""
        file = self.require(asset, shard).tables[table]
        path = f"{self.folder(asset, shard)}/{file.file}"
        # Parquet asks for the ranges that it needs: no look at the size before, no reading ahead.
        exact = {} if self.is_local else {"size": file.bytes, "cache_type": "none"}
        return self.fs.open(path, "rb", **exact)

    def path(self, asset: str, shard: str, table: str) -> str:
        """Path of a table's file on `self.fs`."""
        return f"{self.folder(asset, shard)}/{self.require(asset, shard).tables[table].file}"

    def read(
        self, asset: str, shard: str, table: str, columns: list[str] | None = None
    ) -> pl.DataFrame:
        """A table, or some of its columns, in memory; an optional one may be empty."""
        if table in OPTIONAL and table not in self.require(asset, shard).tables:
            empty = pl.DataFrame(schema=pl.Schema(TABLES[asset][table]))
            return empty.select(columns) if columns else empty
        with self.telling(asset, shard, table), self.open(asset, shard, table) as file:
            frame = pl.from_arrow(
                pq.read_table(file, columns=columns, page_checksum_verification=True)
            )
        assert isinstance(frame, pl.DataFrame)
        return frame

    def read_all(
        self, asset: str, shards: Iterable[str], table: str, columns: list[str] | None = None
    ) -> pl.DataFrame:
        """A table of several shards, one below the other, in memory."""
        return pl.concat(self.read(asset, shard, table, columns) for shard in shards)

    def batches(
        self, asset: str, shard: str, table: str, columns: list[str] | None = None, rows: int = 1024
    ) -> Iterator[pl.DataFrame]:
        """A table in batches of at most `rows` rows, so that memory stays bounded."""
        with self.telling(asset, shard, table), self.open(asset, shard, table) as file:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            for batch in parquet.iter_batches(batch_size=rows, columns=columns):
                frame = pl.from_arrow(batch)
                assert isinstance(frame, pl.DataFrame)
                yield frame

    def head(
        self, asset: str, shard: str, table: str, columns: list[str] | None = None, rows: int = 5
    ) -> pl.DataFrame:
        """The first rows of a table, as the UI shows them."""
        empty = pl.DataFrame(schema=pl.Schema(TABLES[asset][table]))
        first = next(self.batches(asset, shard, table, columns, rows), empty)
        return first.select(columns) if columns else first
