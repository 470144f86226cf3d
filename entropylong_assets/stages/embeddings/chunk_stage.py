"""The stage `chunk_embeddings`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from entropylong_assets.settings.cluster import GPU_STEP
from entropylong_assets.stages.corpus.stage import CORPUS_DOCUMENTS_STAGE, INGEST
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.embeddings.settings import EmbeddingSettings
from entropylong_assets.stages.embeddings.tables import (
    CHUNK_EMBEDDINGS,
    EMBEDDING_INDEX,
    ChunkEmbeddingsSummary,
)
from entropylong_assets.stages.stage import Check, Partition, Result, Stage, Step
from entropylong_assets.storage import duck
from entropylong_assets.storage.tables import WHOLE

if TYPE_CHECKING:
    from entropylong_assets.stages.embeddings.table import ChunkTable

CHECKS = Path(__file__).parent / "checks"
_DOCUMENTS_PER_BATCH = 64
VECTOR_SETTINGS = tuple(
    f"embedding.{name}"
    for name in ("model", "dtype", "dimensions", "document_prompt", "document_task")
)
"""Settings that determine the vector of a chunk."""


def identify_chunks(partition: Partition) -> Mapping[str, str]:
    """Name the embedder and the prompt of a chunk."""
    from entropylong_assets.stages.embeddings.embedder import document_identity

    return document_identity(partition.settings.embedding)


def open_chunk_table(partition: Partition, tag: str | None = None) -> ChunkTable:
    """Open the table of a corpus: at a tagged version, or the newest."""
    from entropylong_assets.stages.embeddings.table import open_table

    return open_table(partition.store, tag)


def _embed(step: Step) -> Result:
    from entropylong_assets.stages.embeddings.chunks import ShardEmbedding
    from entropylong_assets.stages.embeddings.embedder import load_embedder
    from entropylong_assets.stages.embeddings.table import ChunkTable

    settings = step.settings.embedding
    embedder = load_embedder(settings)
    for note in embedder.notes:
        step.warn(f"embedding.model {settings.model}: {note}")
    table = ChunkTable(step.store.corpus_uri, embedder.dimension, embedder.identity)
    columns = ["doc_id", "source", "text"]
    documents = step.store.batches(
        CORPUS_DOCUMENTS, step.shard, "documents", columns, _DOCUMENTS_PER_BATCH
    )
    embedding = ShardEmbedding(step.shard, embedder, settings.min_chunk_chars)
    n_documents = step.require(CORPUS_DOCUMENTS).tables["documents"].rows

    def on_progress(chunks: int) -> None:
        step.progress(chunks)
        step.progress.reach("documents", embedding.documents, n_documents)

    step.progress.reach("documents", 0, n_documents)
    table.replace_shard(step.shard, embedding.rows(documents, step.writer, on_progress))
    return Result(
        ChunkEmbeddingsSummary(
            documents=embedding.documents,
            chunks=embedding.chunks,
            embedder_tokens=embedding.tokens,
            dimension=embedder.dimension,
            window_tokens=embedder.window_tokens,
            embedder=embedder.identity,
            document_prompt=embedder.document.prompt,
        ),
        {"preview": step.writer.preview("chunks")},
    )


def _chunk_views(partition: Partition) -> Mapping[str, duck.View]:
    store, shard = partition.store, partition.shard

    def duplicates() -> pl.DataFrame:
        """Documents of this shard that the present index removed from the table."""
        if store.manifest(EMBEDDING_INDEX) is None:
            return pl.DataFrame(schema={"doc_id": pl.String})
        parts = [
            store.read(EMBEDDING_INDEX, WHOLE, name, ["doc_id", "shard"])
            for name in ("duplicates", "near_copies")
        ]
        return pl.concat(parts).filter(pl.col("shard") == shard).select("doc_id").unique()

    return {
        "documents": (CORPUS_DOCUMENTS, [shard], "documents"),
        "chunks": (CHUNK_EMBEDDINGS, [shard], "chunks"),
        "duplicates": duplicates,
        "vectors": lambda: open_chunk_table(partition).reader(
            ["chunk_id", "doc_id", "vector"], shard
        ),
        "summary": lambda: duck.summary(store, CHUNK_EMBEDDINGS, shard, ["window_tokens"]),
    }


CHUNK_EMBEDDINGS_STAGE = Stage(
    tables=CHUNK_EMBEDDINGS,
    description="""Chunks of one shard's documents with unit vectors, for retrieval.

Chunks end at line or sentence borders and fit the embedder's window. One commit to the corpus'
LanceDB table replaces the texts and vectors of this shard and of no other.""",
    compute=_embed,
    inputs=(CORPUS_DOCUMENTS_STAGE,),
    sections={"embedding": EmbeddingSettings},
    determined_by=lambda _: (
        *VECTOR_SETTINGS,
        "embedding.chunk_tokens",
        "embedding.min_chunk_chars",
    ),
    identify=identify_chunks,
    permanent=("embedding.model", "embedding.dimensions"),
    code_version=6,
    check_folder=CHECKS,
    checks=(
        Check("one_vector_per_chunk", "The LanceDB table holds one vector per chunk."),
        Check("vectors_unit_length", "Vectors are finite and of length 1."),
        Check(
            "chunks_within_documents",
            "Every document has chunks, in order, within its text and the embedder's window.",
        ),
    ),
    views=_chunk_views,
    job=INGEST,
    automation="per_shard",
    resources=GPU_STEP,
    pool="gpu",
    unit="chunks",
    kinds=frozenset({"lancedb", "huggingface"}),
)
