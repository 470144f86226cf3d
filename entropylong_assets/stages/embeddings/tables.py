"""Tables of `chunk_embeddings` and `embedding_index`, and the summaries of their partitions."""

from __future__ import annotations

import pyarrow as pa

from entropylong_assets.storage.schemas import (
    CHUNK_ID,
    DOC_ID,
    END,
    INT,
    SHARD,
    START,
    TEXT,
    Summary,
    TableSet,
    column,
)


class ChunkEmbeddingsSummary(Summary):
    """Counts of one shard, and the embedder."""

    documents: int
    chunks: int
    embedder_tokens: int
    """Length of all chunks (tokens of the embedder, special tokens included)."""
    dimension: int
    """Dimensions of a vector."""
    window_tokens: int
    """Longest chunk (tokens of the embedder)."""
    embedder: str
    """Identity of the embedder: name and content."""
    document_prompt: str = ""
    """Text put before every chunk when it was embedded."""


CHUNK_EMBEDDINGS = TableSet(
    name="chunk_embeddings",
    scope="corpus",
    main="chunks",
    summary=ChunkEmbeddingsSummary,
    format_version=2,
    schemas={
        "chunks": pa.schema(
            [
                CHUNK_ID,
                DOC_ID,
                column("chunk_number", INT, "number in the document, from 0"),
                START,
                END,
                column("n_embedder_tokens", INT, "length for the embedder", "token"),
            ]
        ),
    },
)


class IndexFigures(Summary):
    """How a table is searched, with what recall, and what its index consists of."""

    search: str = "exact"
    """`exact`, or the type of the index."""
    nprobes: int | None = None
    """Partitions of each segment searched per query; none for an exact search."""
    refine_factor: int | None = None
    """Rows nominated per row wanted; the whole vectors then decide. None: no such choice."""
    recall: float = 1.0
    """recall@K against exact search; 1 for an exact search."""
    recall_queries: int = 0
    """Queries that the recall was measured with; 0 for an exact search."""
    segments: int = 0
    """Segments of the index."""
    rows_added: int = 0
    """Rows that this materialization indexed; segments that existed hold the others."""
    centroids: str = ""
    """Fingerprint of the centroids that the segments share."""
    centroid_rows: int = 0
    """Rows of the table when the centroids were trained."""
    nprobes_when_new: int | None = None
    """Probes that sufficed when the centroids were new."""
    refine_factor_when_new: int | None = None
    """Refine factor that sufficed then."""
    recall_when_new: float = 1.0
    """recall@K with these, then."""
    recall_unsteered: float = 1.0
    """recall@K with these, now. If it has fallen, the centroids no longer fit."""


class EmbeddingIndexSummary(IndexFigures):
    """What the index holds, and how it is searched."""

    tag: str
    """Tag of the indexed version of the vector table."""
    table_version: int
    n_rows: int
    """Indexed chunks."""
    n_shards: int
    duplicate_documents: int
    """Copies of documents in other shards than their owner's; removed from the table."""
    near_duplicate_documents: int = 0
    """Members of clusters of near-duplicates, counted per shard; removed from the table."""
    restored_documents: int = 0
    """Documents that an earlier index had removed, embedded again."""
    excluded_shards: list[str]
    """Shards with rows in the table that are not indexed; every search leaves them out."""
    recall_k: int
    """K (chunks)."""
    phrase_documents: int = 0
    """Documents whose phrases were counted."""
    text_index: bool = False
    """Whether the words of the chunks are indexed, for full-text search."""


class IndexSegmentsSummary(Summary):
    """What one shard adds to the index of its corpus."""

    rows_added: int
    """Rows that were indexed; 0 if they had been before, or if the table is searched exactly."""
    rows_left: int
    """Rows that are left to `embedding_index`: too few for a segment of their own."""
    partitions: int
    """Number of centroids; 0 if the table is searched exactly."""
    centroids: str
    """Fingerprint of the centroids."""


INDEX_SEGMENTS = TableSet(
    name="index_segments",
    scope="corpus",
    main="segments",
    summary=IndexSegmentsSummary,
    schemas={
        "segments": pa.schema(
            [
                SHARD,
                column("segment", TEXT, "UUID of the segment in the LanceDB table"),
                column("n_rows", pa.int64(), "rows that it covers", "row"),
            ]
        ),
    },
)


EMBEDDING_INDEX = TableSet(
    name="embedding_index",
    scope="corpus",
    main="shards",
    summary=EmbeddingIndexSummary,
    format_version=4,
    optional=frozenset({"near_copies"}),
    schemas={
        "shards": pa.schema(
            [
                SHARD,
                column("position", INT, "place in the plan of shards"),
                column("data_version", TEXT, "version of chunk_embeddings that is indexed"),
                column("n_chunks", pa.int64(), "rows of the shard in the table", "row"),
            ]
        ),
        "duplicates": pa.schema(
            [
                DOC_ID,
                SHARD,
                column("owner", TEXT, "shard whose copy is indexed"),
                column("n_chunks", INT, "rows removed from the table", "row"),
            ]
        ),
        "near_copies": pa.schema(
            [
                DOC_ID,
                SHARD,
                column("representative", TEXT, "doc_id of the document that is indexed instead"),
                column("n_chunks", INT, "rows removed from the table", "row"),
            ]
        ),
        "sample": pa.schema(
            [
                CHUNK_ID,
                column("point", pa.uint64(), "hash of chunk_id; random draws are made from these"),
            ]
        ),
        "phrases": pa.schema(
            [
                column("phrase", TEXT, "two or three adjacent words, joined by spaces"),
                column("documents", INT, "counted documents that contain it, at least 2"),
            ]
        ),
    },
)
