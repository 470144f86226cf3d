"""The stages `index_segments` and `embedding_index`."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import polars as pl

from entropylong_assets.settings.section import fingerprint
from entropylong_assets.stages.corpus.removals import removed_from_corpus
from entropylong_assets.stages.corpus.shards import load_plan
from entropylong_assets.stages.embeddings.chunk_stage import (
    CHECKS,
    CHUNK_EMBEDDINGS_STAGE,
    VECTOR_SETTINGS,
    identify_chunks,
    open_chunk_table,
)
from entropylong_assets.stages.embeddings.index_size import (
    MIN_ROWS_PER_PARTITION,
    min_indexed_rows,
    partitions,
    searched_by_index,
)
from entropylong_assets.stages.embeddings.settings import EmbeddingSettings
from entropylong_assets.stages.embeddings.tables import (
    CHUNK_EMBEDDINGS,
    EMBEDDING_INDEX,
    INDEX_SEGMENTS,
    IndexSegmentsSummary,
)
from entropylong_assets.stages.near_duplicates.stages import INDEX, NEAR_DUPLICATES_STAGE
from entropylong_assets.stages.stage import Check, Job, Partition, Result, Stage, Step
from entropylong_assets.storage import duck
from entropylong_assets.storage.manifest import TableError
from entropylong_assets.storage.tables import WHOLE

if TYPE_CHECKING:
    from entropylong_assets.stages.embeddings.segments import SegmentedIndex

INDEX_POOL = "embedding_index_{corpus}"
"""Pool of the steps that index and compact a table: they conflict with each other, but not with
shards that are embedded."""
_MANIFESTS_AT_ONCE = 16
_INDEX_SETTINGS = tuple(
    f"embedding.{name}" for name in ("search", "index", "index_generation", "ann_min_rows")
)
"""Settings that determine whether there is an index, and which."""


def _segmented_index(partition: Partition) -> SegmentedIndex:
    from entropylong_assets.stages.embeddings.segments import SegmentedIndex

    embedding: EmbeddingSettings = partition.settings.embedding
    corpus_uri, generation = partition.store.corpus_uri, embedding.index_generation
    return SegmentedIndex(corpus_uri, embedding.index, generation, embedding.device)


def _segment_views(partition: Partition) -> Mapping[str, duck.View]:
    store, shard, figures = partition.store, partition.shard, ["rows_left", "partitions"]

    def without_segment() -> pl.DataFrame:
        return pl.DataFrame({"n_rows": [_segmented_index(partition).rows_without_segment(shard)]})

    return {
        "summary": lambda: duck.summary(store, INDEX_SEGMENTS, shard, figures),
        "without_segment": without_segment,
    }


def _skips_segment(partition: Partition) -> str | None:
    fewest = min_indexed_rows(partition.settings.embedding)
    if fewest is None:
        return "embedding.search is exact"
    chunks = partition.store.manifest(CHUNK_EMBEDDINGS, partition.shard)
    if chunks is None:
        return None
    n_chunks = chunks.summary["chunks"]
    if n_chunks < MIN_ROWS_PER_PARTITION * partitions(fewest):
        return (
            f"its {n_chunks:,} chunks are too few for a segment of their own; "
            f"{EMBEDDING_INDEX.name} indexes them if the corpus is large enough"
        )
    return None


def _segment(step: Step) -> Result:
    rows = open_chunk_table(step).rows
    if not searched_by_index(step.settings.embedding, rows):
        step.log(f"a table of {rows:,} rows is searched exactly: nothing to index")
        return Result(IndexSegmentsSummary(rows_added=0, rows_left=0, partitions=0, centroids=""))
    index = _segmented_index(step)
    segments = index.index_shard(step.shard)
    if segments.added:
        row = {"shard": step.shard, "segment": segments.added, "n_rows": segments.rows_added}
        step.writer.append("segments", [row])
    step.progress(segments.rows_added)
    return Result(
        IndexSegmentsSummary(
            rows_added=segments.rows_added,
            rows_left=segments.rows_left,
            partitions=len(segments.centroids.vectors_PE),
            centroids=segments.centroids.identity,
        )
    )


INDEX_SEGMENTS_STAGE = Stage(
    tables=INDEX_SEGMENTS,
    description="""The part of the vector index that covers one shard. Optional: for large corpora.

Any number of steps build segments at the same time. `embedding_index` uses them and indexes the
remaining rows itself. The first segment trains the centroids that all share. Small tables,
which are searched exactly, get no segment, and neither do shards with few rows.""",
    compute=_segment,
    inputs=(CHUNK_EMBEDDINGS_STAGE,),
    determined_by=lambda _: _INDEX_SETTINGS,
    identify=identify_chunks,
    skip_reason=_skips_segment,
    code_version=1,
    check_folder=CHECKS,
    checks=(
        Check(
            "shard_has_segment",
            "Segments cover all chunks of the shard, unless these are too few.",
        ),
    ),
    views=_segment_views,
    job=Job(
        "segments",
        "Index many shards in parallel, before `index` does the rest. Advisable for an index that "
        "one step would take too long to build.",
        hours=12,
    ),
    unit="rows",
    kinds=frozenset({"lancedb"}),
)


def _planned(partition: Partition) -> dict[str, int]:
    """Place in the plan of each shard."""
    return {shard.key: shard.position for shard in load_plan(partition.store).shards}


def _identify_index(partition: Partition) -> Mapping[str, object]:
    return {
        **identify_chunks(partition),
        "plan": _planned(partition),
        # The data version of a shard covers its chunks, not their vectors.
        "shards_embedded_otherwise": _embedded_otherwise(partition),
    }


def _embedded_otherwise(partition: Partition) -> list[str]:
    """Shards whose vectors were made with another document prompt or task, sorted."""
    from entropylong_assets.stages.embeddings.embedder import default_prompt

    settings = partition.settings.embedding
    wanted = (identify_chunks(partition)["document_prompt"], settings.document_task)
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


_CHECKED = (
    "n_rows",
    "recall",
    "recall_queries",
    "recall_when_new",
    "recall_unsteered",
    "centroid_rows",
)
"""Figures of the summary that checks of the index read."""


def _index_views(partition: Partition) -> Mapping[str, duck.View]:
    store = partition.store
    tag = store.summary(EMBEDDING_INDEX).tag
    return {
        "shards": (EMBEDDING_INDEX, [WHOLE], "shards"),
        "indexed": lambda: open_chunk_table(partition, tag).reader(["chunk_id", "doc_id", "shard"]),
        "summary": lambda: duck.summary(store, EMBEDDING_INDEX, WHOLE, _CHECKED),
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
    optional_inputs=(INDEX_SEGMENTS_STAGE,),
    determined_by=lambda _: (
        *VECTOR_SETTINGS,
        *_INDEX_SETTINGS,
        "embedding.target_recall",
        "embedding.recall_queries",
        "embedding.recall_k",
        "embedding.phrase_documents",
        "embedding.text_index",
        "seed",  # of the rows used as queries
    ),
    identify=_identify_index,
    removals=removed_from_corpus,
    code_version=9,
    check_folder=CHECKS,
    checks=(
        Check("no_document_indexed_twice", "Every document is indexed in one shard."),
        Check("index_rows_reconcile", "The index holds every chunk of its shards."),
        Check(
            "recall_reached",
            "The recall@K against exact search reaches its target.",
            blocking=False,
            warns=True,
        ),
        Check(
            "centroids_fit",
            "The centroids of the index still fit its chunks. If not, search slows down: increase "
            "`embedding.index_generation` to rebuild the index.",
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
