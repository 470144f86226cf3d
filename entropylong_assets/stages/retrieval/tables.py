"""Tables of this stage, and the summary of a partition."""

from __future__ import annotations

import pyarrow as pa

from entropylong_assets.storage.schemas import (
    ANCHOR,
    CHUNK_ID,
    DOC_ID,
    END,
    FLOAT,
    INT,
    REASON,
    ROOT_ID,
    SHARD,
    SOURCE,
    START,
    Summary,
    TEXT,
    TableSet,
    column,
)


class CandidateContextsSummary(Summary):
    """Counts and figures of one partition of `candidate_contexts`."""


CANDIDATE_CONTEXTS = TableSet(
    name="candidate_contexts",
    scope="dataset",
    main="candidates",
    summary=CandidateContextsSummary,
    format_version=2,
    schemas={
        "queries": pa.schema([ROOT_ID, ANCHOR, column("query", TEXT, "text around the anchor")]),
        "candidates": pa.schema(
            [
                ROOT_ID,
                ANCHOR,
                column("rank", INT, "by similarity, from 1"),
                CHUNK_ID,
                column("similarity", FLOAT, "cosine of query and chunk"),
                column("containment", FLOAT, "share of the chunk's word n-grams in the root"),
                column("guard", TEXT, "`passed` or `near_duplicate`"),
            ]
        ),
        "chunks": pa.schema(
            [
                CHUNK_ID,
                DOC_ID,
                SHARD,
                SOURCE,
                START,
                END,
                column("text", pa.large_string(), "text of the passage"),
            ]
        ),
        "dropped": pa.schema(
            [
                ROOT_ID,
                column("anchor", INT, "position; null: the whole root", "token", null=True),
                REASON,
                column("n_anchors", INT, "anchors lost with it"),
            ]
        ),
    },
)
