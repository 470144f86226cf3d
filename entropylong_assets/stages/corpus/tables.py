"""Tables of this stage, and the summary of a partition."""

from __future__ import annotations

import pyarrow as pa

from entropylong_assets.storage.schemas import (
    BOOL,
    DOC_ID,
    INT,
    REASON,
    SOURCE,
    Summary,
    TEXT,
    TableSet,
    column,
)


class CorpusDocumentsSummary(Summary):
    """Counts and figures of one partition of `corpus_documents`."""


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
                column("file", TEXT, "URI of the source file"),
                column("row", pa.int64(), "row in the file, from 0", "row"),
                column("external_id", TEXT, "the source's own id", null=True),
                column("license", TEXT, "licence as the source gives it"),
                column("n_chars", INT, "length of the text", "character"),
                column("n_tokens", INT, "length for the scoring model", "token"),
                column("is_root", BOOL, "chosen as a root, by hash"),
            ]
        ),
        "dropped": pa.schema(
            [
                column("file", TEXT, "URI of the source file"),
                column("row", pa.int64(), "row in the file, from 0", "row"),
                column("external_id", TEXT, "the source's own id", null=True),
                REASON,
                column("detail", TEXT, "what was found there"),
            ]
        ),
    },
)
