"""Tables of `corpus_documents`, and the summary of a partition."""

from __future__ import annotations

import pyarrow as pa

from entropylong_assets.storage.schemas import (
    DOC_ID,
    INT,
    REASON,
    SOURCE,
    TEXT,
    Summary,
    TableSet,
    column,
)


class CorpusDocumentsSummary(Summary):
    """Counts of one shard: rows_read = documents + the sum of dropped."""

    rows_read: int
    """Rows of the source files, bad ones included."""
    documents: int
    chars: int
    """Length of all documents (characters)."""
    dropped: dict[str, int]
    """Number of rows by reason."""
    files_without_rows: int = 0
    """Files that are empty now. They are no fault."""


_PLACE = [
    column("file", TEXT, "URI of the source file"),
    column("row", pa.int64(), "row in the file, from 0", "row"),
    column("external_id", TEXT, "the source's own id", null=True),
]

CORPUS_DOCUMENTS = TableSet(
    name="corpus_documents",
    scope="corpus",
    main="documents",
    summary=CorpusDocumentsSummary,
    format_version=2,
    schemas={
        "documents": pa.schema(
            [
                DOC_ID,
                column("text", pa.large_string(), "canonical text: NFC, no control characters"),
                SOURCE,
                *_PLACE,
                column("license", TEXT, "licence as the source gives it"),
                column("n_chars", INT, "length of the text", "character"),
            ]
        ),
        "dropped": pa.schema([*_PLACE, REASON, column("detail", TEXT, "what is wrong with it")]),
    },
)
