"""The stages `chunk_embeddings` and `embedding_index`."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from entropylong_assets.settings.cluster import GPU_STEP
from entropylong_assets.settings.section import fingerprint
from entropylong_assets.stages.corpus.removals import removed_from_corpus
from entropylong_assets.stages.corpus.shards import load_plan
from entropylong_assets.stages.corpus.stage import CORPUS_DOCUMENTS_STAGE, INGEST
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.embeddings.settings import EmbeddingSettings
from entropylong_assets.stages.embeddings.tables import (
    CHUNK_EMBEDDINGS,
    EMBEDDING_INDEX,
    ChunkEmbeddingsSummary,
)
from entropylong_assets.stages.near_duplicates.stages import INDEX, NEAR_DUPLICATES_STAGE
from entropylong_assets.stages.stage import Check, Partition, Result, Stage, Step
from entropylong_assets.storage import duck
from entropylong_assets.storage.manifest import TableError
from entropylong_assets.storage.tables import WHOLE

if TYPE_CHECKING:
    from entropylong_assets.stages.embeddings.table import ChunkTable

_CHECKS = Path(__file__).parent / "checks"
INDEX_POOL = "embedding_index_{corpus}"
"""Pool of the steps that index and compact a table: they conflict with each other, but not with
shards that are embedded."""
_DOCUMENTS_PER_BATCH = 64
_MANIFESTS_AT_ONCE = 16
_VECTOR_SETTINGS = tuple(
    f"embedding.{name}" for name in ("model", "dimensions", "document_prompt", "document_task")
)
"""Settings that determine the vector of a chunk."""


def _identify_chunks(partition: Partition) -> Mapping[str, str]:
    from entropylong_assets.stages.embeddings.embedder import document_identity

    return document_identity(partition.settings.embedding)


def _open_table(partition: Partition, tag: str | None = None) -> ChunkTable:
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
        "vectors": lambda: _open_table(partition).reader(["chunk_id", "doc_id", "vector"], shard),
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
        *_VECTOR_SETTINGS,
        "embedding.chunk_tokens",
        "embedding.min_chunk_chars",
    ),
    identify=_identify_chunks,
    permanent=("embedding.model", "embedding.dimensions"),
    code_version=6,
    check_folder=_CHECKS,
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


def _planned(partition: Partition) -> dict[str, int]:
    """Place in the plan of each shard."""
    return {shard.key: shard.position for shard in load_plan(partition.store).shards}


def _identify_index(partition: Partition) -> Mapping[str, object]:
    return {
        **_identify_chunks(partition),
        "plan": _planned(partition),
        # The data version of a shard covers its chunks, not their vectors.
        "shards_embedded_otherwise": _embedded_otherwise(partition),
    }


def _embedded_otherwise(partition: Partition) -> list[str]:
    """Shards whose vectors were made with another document prompt or task, sorted."""
    from entropylong_assets.stages.embeddings.embedder import default_prompt

    settings = partition.settings.embedding
    wanted = (_identify_chunks(partition)["document_prompt"], settings.document_task)
    before = default_prompt(settings)  # of shards that were embedded before prompts were recorded

    def differs(shard: str) -> bool:
        manifest = partition.store.manifest(CHUNK_EMBEDDINGS, shard)
        if manifest is None:
            return False
        made, settings = manifest.determinants, manifest.determinants.get("settings", {})
        task = settings.get("embedding.document_task")
        return (made.get("document_prompt", before), task) != wanted

    shards = partition.store.shards(CHUNK_EMBEDDINGS)
    with ThreadPoolExecutor(_MANIFESTS_AT_ONCE) as pool:
        others = zip(shards, pool.map(differs, shards), strict=True)
        return sorted(shard for shard, other in others if other)


def _index(step: Step) -> Result:
    from entropylong_assets.stages.embeddings.embedder import load_embedder
    from entropylong_assets.stages.embeddings.index import index_shards
    from entropylong_assets.stages.embeddings.phrases import count_phrases
    from entropylong_assets.stages.embeddings.table import ChunkTable

    positions: Mapping[str, int] = step.determinants["plan"]
    eligible: Mapping[str, str] = step.determinants["inputs"][CHUNK_EMBEDDINGS.name]
    otherwise = set(step.determinants["shards_embedded_otherwise"])
    usable = positions.keys() - otherwise
    versions = {s: eligible[s] for s in step.input_shards(CHUNK_EMBEDDINGS) if s in usable}
    left_out = dict(step.left_out)
    for shard in sorted(eligible.keys() - versions.keys()):
        left_out[shard] = (
            "it is no longer in the plan of shards"
            if shard not in positions
            else "it was embedded with another document prompt or task; materialize "
            f"{CHUNK_EMBEDDINGS.name} again"
        )
        step.warn(f"shard {shard} is left out: {left_out[shard]}")
    if left_out and not versions:
        first, reason = next(iter(left_out.items()))
        raise TableError(
            f"{step.stage.name}: none of {len(left_out)} embedded shards can be used. The first, "
            f"{first}: {reason}. Correct that, then materialize {step.stage.name} again"
        )
    embedder = load_embedder(step.settings.embedding)
    table = ChunkTable(step.store.corpus_uri, embedder.dimension, embedder.identity)
    tag = f"index-{fingerprint(step.determinants)}"
    phrases, n_documents = count_phrases(
        step.store, list(versions), step.settings.embedding.phrase_documents
    )
    step.writer.append("phrases", phrases)
    indexed = index_shards(
        step.store, step.settings, table, positions, versions, tag, step.writer, embedder
    )
    if indexed.restored_documents:
        step.log(f"embedded {indexed.restored_documents} documents again that are indexed now")
    summary = indexed.model_copy(update={"phrase_documents": n_documents})
    step.progress(summary.n_shards)
    step.log(f"indexed {summary.n_shards} shards as {tag}")
    return Result(summary, {"shards left out": len(left_out), "left out": left_out})


def _index_views(partition: Partition) -> Mapping[str, duck.View]:
    store = partition.store
    tag = store.summary(EMBEDDING_INDEX).tag
    return {
        "shards": (EMBEDDING_INDEX, [WHOLE], "shards"),
        "indexed": lambda: _open_table(partition, tag).reader(["chunk_id", "doc_id", "shard"]),
        "summary": lambda: duck.summary(
            store, EMBEDDING_INDEX, WHOLE, ["recall", "recall_queries"]
        ),
    }


EMBEDDING_INDEX_STAGE = Stage(
    tables=EMBEDDING_INDEX,
    description="""One tagged version of the LanceDB table, over all usable shards embedded so far.

Shards that have not passed a blocking check of their documents or chunks, or that were embedded
with another document prompt, are left out and listed in the metadata with the reason. A document in
several shards is indexed once, in the shard that was registered first, and a cluster of
near-duplicates is indexed as its representative. Small tables are searched exactly. Larger ones get
an index, whose probes and refine factor are raised until the measured recall@K reaches its target.
With `embedding.text_index` the words are indexed too.""",
    compute=_index,
    inputs=(CHUNK_EMBEDDINGS_STAGE, NEAR_DUPLICATES_STAGE),
    partitioned=False,
    determined_by=lambda _: (
        *_VECTOR_SETTINGS,
        "embedding.search",
        "embedding.index",
        "embedding.ann_min_rows",
        "embedding.target_recall",
        "embedding.recall_queries",
        "embedding.recall_k",
        "embedding.phrase_documents",
        "embedding.text_index",
        "seed",  # of the rows used as queries
    ),
    identify=_identify_index,
    removals=removed_from_corpus,
    code_version=8,
    check_folder=_CHECKS,
    checks=(
        Check("no_document_indexed_twice", "Every document is indexed in one shard."),
        Check("index_rows_reconcile", "The index holds every chunk of its shards."),
        Check(
            "recall_reached",
            "The recall@K against exact search reaches its target.",
            blocking=False,
            warns=True,
        ),
    ),
    views=_index_views,
    check_parameters=lambda partition: {
        "target_recall": partition.settings.embedding.target_recall
    },
    job=INDEX,
    automation="per_batch",
    pool=INDEX_POOL,
    unit="shards",
    kinds=frozenset({"lancedb"}),
)
