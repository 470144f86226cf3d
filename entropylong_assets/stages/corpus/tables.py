"""Tables of `corpus_documents`, and the summary of a partition."""

from __future__ import annotations

import pyarrow as pa

from entropylong_assets.storage.schemas import (
    DOC_ID,
    END,
    FLOAT,
    INT,
    REASON,
    SOURCE,
    START,
    TEXT,
    Summary,
    TableSet,
    column,
)


class EvaluationSetFigures(Summary):
    """One evaluation set, and how many documents of the shard quote it."""

    name: str
    content: str
    """Hash of all texts, in their order."""
    texts: int
    too_short: int
    """Texts that are too short to be compared."""
    ngram: int
    tokenizer: str | None = None
    """Whose tokens are compared; None: words."""
    overlap: float
    action: str
    documents: int
    """Documents that quote a text of the set."""


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
    """Files that have become empty, which is no fault."""
    not_selected: int = 0
    """Rows that do not meet the source's `where`. They do not count as read."""
    evaluation_sets: tuple[EvaluationSetFigures, ...] = ()
    """Evaluation sets that the documents were compared with."""


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
    optional=frozenset({"contaminated", "metadata"}),
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
        "metadata": pa.schema(
            [
                DOC_ID,
                column("metadata", TEXT, "the source's metadata_fields, as JSON"),
            ]
        ),
        "contaminated": pa.schema(
            [
                DOC_ID,
                *_PLACE,
                column("evaluation_set", TEXT, "name of the evaluation set in the settings"),
                column("text", INT, "number of the quoted text in its set, from 0"),
                START,
                END,
                column("overlap", FLOAT, "share of the text's n-grams that the document has"),
                column("action", TEXT, "`drop` or `tag`"),
            ]
        ),
        "dropped": pa.schema([*_PLACE, REASON, column("detail", TEXT, "what is wrong with it")]),
    },
)
