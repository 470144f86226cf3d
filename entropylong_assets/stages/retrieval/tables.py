"""Tables of this stage, and the summary of a partition."""

from __future__ import annotations

import pyarrow as pa

from entropylong_assets.storage.schemas import (
    ANCHOR,
    BOOL,
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
    TEXT,
    Summary,
    TableSet,
    column,
)


class CandidateContextsSummary(Summary):
    """Counts of one partition of `candidate_contexts`, and the index that was searched."""

    roots: int
    """Roots whose document belongs to this shard."""
    anchors: int
    """Anchors of these roots, each with a query."""
    candidates: int
    """(anchor, chunk) pairs."""
    near_duplicate: int
    """Candidates that the leak check rejected."""
    chunks: int
    """Distinct chunks among the candidates."""
    phrase_documents: int
    """Documents of the corpus in which phrases were counted."""
    found_by_text: int = 0
    """Candidates that only the full-text search found."""
    shortened_queries: int = 0
    """Queries of fewer tokens than `retrieval.half_window` asks for, to fit the embedder's window;
    the anchor stays in their middle."""
    query_prompt: str = ""
    """Text put before every query when it was embedded."""
    dropped: dict[str, int]
    """Anchors without candidates, by reason."""
    index: str
    """Tag of the version of the chunk table that was searched."""
    excluded_shards: list[str]
    """Shards that are in the table but not in the index."""
    search: str
    """`exact`, or the type of the index."""
    nprobes: int | None
    """Partitions of the index searched per query."""
    refine_factor: int | None
    """Rows taken from the index per row wanted; the exact vectors choose among them."""


CANDIDATE_CONTEXTS = TableSet(
    name="candidate_contexts",
    scope="dataset",
    main="candidates",
    summary=CandidateContextsSummary,
    format_version=4,
    schemas={
        "queries": pa.schema(
            [
                ROOT_ID,
                ANCHOR,
                column("query", TEXT, "text around the anchor"),
                column("text_query", TEXT, "text whose words are searched for", null=True),
                column("word", TEXT, "word at the anchor; null: no letter or digit", null=True),
                column("kind", TEXT, "`symbol`, `import`, `url`, `reference`, or null", null=True),
                column(
                    "phrase_documents",
                    INT,
                    "documents with the three words that end here",
                    null=True,
                ),
                column("pair_documents", INT, "documents with this word and the next", null=True),
            ]
        ),
        "candidates": pa.schema(
            [
                ROOT_ID,
                ANCHOR,
                column("rank", INT, "by similarity, from 1"),
                CHUNK_ID,
                column("found_by", TEXT, "`vector`, `text` or `both`"),
                column("similarity", FLOAT, "cosine of query and chunk"),
                column("containment", FLOAT, "share of the chunk that occurs in the root"),
                column("leak_check", TEXT, "`passed` or `near_duplicate`"),
                column("has_word", BOOL, "whether the chunk contains the word", null=True),
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
                column("text", pa.large_string(), "text of the chunk"),
            ]
        ),
        "dropped": pa.schema(
            [
                ROOT_ID,
                column("anchor", INT, "position; null: the whole root", "token", null=True),
                REASON,
                column("n_anchors", INT, "anchors dropped"),
            ]
        ),
    },
)
