"""Checkpoints: finished batches of a partition, so that an interrupted run loses at most one.

They are stored beside the partition's own files, and only a later run of the same work reads them:

    <corpus or dataset>/<stage>/<shard>/.batches-<key>/<number>-<table>.parquet
    <corpus or dataset>/<stage>/<shard>/.batches-<key>/<number>.json             (written last)

The key is a fingerprint of everything that determines the batches. A run with another model,
setting, input or code version has another key and therefore never reads them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import polars as pl

from entropylong_assets.storage.schemas import TableSet
from entropylong_assets.storage.tables import TableStore

PREFIX = ".batches-"


class Batch(NamedTuple):
    """One finished batch. tables: rows per table. figures: JSON values."""

    tables: Mapping[str, pl.DataFrame]
    figures: Mapping[str, Any]


class Checkpoints:
    """The finished batches of one partition under one key. Batches are numbered from 0."""

    def __init__(self, store: TableStore, tables: TableSet[Any], shard: str, key: str) -> None:
        self._store = store
        self.folder = f"{store.folder(tables, shard)}/{PREFIX}{key}"
        """Path of the batches, on the file system of the store."""

    def save(self, number: int, batch: Batch) -> None:
        """Store a batch. It counts as finished once all of its files are written."""
        for table, rows in batch.tables.items():
            stream = io.BytesIO()
            rows.write_parquet(stream, compression="zstd")
            self._store.put(f"{self.folder}/{number}-{table}.parquet", stream.getvalue())
        content = {"tables": list(batch.tables), "figures": batch.figures}
        self._store.put(f"{self.folder}/{number}.json", json.dumps(content).encode())

    def load(self, number: int) -> Batch | None:
        """Return the batch, or None if it was not finished or can't be read."""
        read = self._store.fs.cat_file
        try:
            content = json.loads(read(f"{self.folder}/{number}.json"))
            tables = {
                table: pl.read_parquet(io.BytesIO(read(f"{self.folder}/{number}-{table}.parquet")))
                for table in content["tables"]
            }
            return Batch(tables, content["figures"])
        except (OSError, ValueError, KeyError, pl.exceptions.PolarsError):
            return None


def remove_checkpoints(store: TableStore, tables: TableSet[Any], shard: str) -> None:
    """Remove all checkpoints of a published partition, under any key."""
    folder = store.folder(tables, shard)
    for path in store.fs.ls(folder, detail=False, refresh=True):
        if path.rstrip("/").rpartition("/")[2].startswith(PREFIX):
            with suppress(FileNotFoundError):  # another writer has just removed it
                store.fs.rm(path, recursive=True)
