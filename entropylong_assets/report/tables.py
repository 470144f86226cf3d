"""Tables of the report, and the summary of its partition."""

from __future__ import annotations

import pyarrow as pa

from entropylong_assets.storage.schemas import TEXT, Summary, TableSet, column


class ReportSummary(Summary):
    """The page that was written."""

    path: str
    """Path of the page, relative to the dataset's folder."""
    bytes: int
    """Size of the page (bytes)."""
    shards: int
    """Shards that the report is about."""


REPORT = TableSet(
    name="report",
    scope="dataset",
    main="pages",
    summary=ReportSummary,
    schemas={
        "pages": pa.schema(
            [
                column("path", TEXT, "path of the page, relative to the dataset's folder"),
                column("bytes", pa.int64(), "size of the page", "byte"),
                column("sha256", TEXT, "hash of the page"),
            ]
        ),
    },
)
