"""The manifest of a partition, and the record of its checks."""

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
    """Hash of the determinants."""
    determinants: dict[str, Any]
    """All that determines the content: code version, settings, versions of the inputs, ..."""
    tables: dict[str, TableFile]
    summary: dict[str, Any]
    """Counts and figures of the partition, as the stage's summary model dumps them."""

    @property
    def data_version(self) -> str:
        """16 hex digits of a hash of the content: equal for equal files."""
        parts = sorted((name, table.sha256) for name, table in self.tables.items())
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


class CheckOutcome(BaseModel):
    """Outcome of one check on one partition."""

    model_config = ConfigDict(frozen=True)

    passed: bool
    blocking: bool
    faulty_rows: int


class CheckRecord(BaseModel):
    """Outcomes of a partition's checks, stored beside its manifest.

    They belong to one manifest. Once the partition is written again, they are no longer valid.
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
