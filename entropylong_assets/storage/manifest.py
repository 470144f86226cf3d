"""The manifest of a partition: what it contains, what it was made from, and how its checks went."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


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
    """What a partition contains, and what it was made from."""

    model_config = ConfigDict(frozen=True)

    asset: str
    shard: str
    format_version: int
    fingerprint: str
    """Of all that determines the content: code version, settings, upstream data versions."""
    determinants: dict[str, Any]
    tables: dict[str, TableFile]
    summary: dict[str, Any]
    """Counts and figures of the partition, as the stage's summary model dumps them."""

    @property
    def data_version(self) -> str:
        """16 hex digits of the content: equal for equal bytes, whoever wrote them."""
        parts = sorted((name, table.sha256) for name, table in self.tables.items())
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


class CheckOutcome(BaseModel):
    """How one check of a partition went."""

    model_config = ConfigDict(frozen=True)

    passed: bool
    blocking: bool
    faulty_rows: int


class CheckRecord(BaseModel):
    """The outcomes of a partition's checks, stored beside its manifest.

    They belong to one manifest: once the partition is made again, they no longer count.
    """

    model_config = ConfigDict(frozen=True)

    fingerprint: str
    data_version: str
    outcomes: dict[str, CheckOutcome]

    def belongs_to(self, manifest: Manifest) -> bool:
        return (self.fingerprint, self.data_version) == (
            manifest.fingerprint,
            manifest.data_version,
        )
