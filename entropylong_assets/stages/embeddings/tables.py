"""Tables of this stage, and the summary of a partition."""

from __future__ import annotations

import pyarrow as pa

from entropylong_assets.storage.schemas import (
    CHUNK_ID,
    DOC_ID,
    END,
    INT,
    SHARD,
    START,
    Summary,
    TEXT,
    TableSet,
    column,
)


class ChunkEmbeddingsSummary(Summary):
    """Counts and figures of one partition of `chunk_embeddings`."""


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


class EmbeddingIndexSummary(Summary):
    """Counts and figures of one partition of `embedding_index`."""


EMBEDDING_INDEX = TableSet(
    name="embedding_index",
    scope="corpus",
    main="shards",
    summary=EmbeddingIndexSummary,
    format_version=2,
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
                column("owner", TEXT, "shard whose copy counts"),
                column("n_chunks", INT, "rows taken out of the table", "row"),
            ]
        ),
    },
)
