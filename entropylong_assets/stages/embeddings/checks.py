from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import polars as pl

from entropylong_assets.orchestration.checks import SqlCheck, sql_checks
from entropylong_assets.orchestration.resources import Pipeline
from entropylong_assets.storage import duck
from entropylong_assets.storage.tables import WHOLE

if TYPE_CHECKING:
    from entropylong_assets.stages.embeddings.table import ChunkTable

_FOLDER = Path(__file__).parent / "checks"


def _table(pipeline: Pipeline, tag: str | None = None) -> ChunkTable:
    from entropylong_assets.stages.embeddings.table import open_table

    return open_table(pipeline.settings.data_uri, tag)


def _chunk_views(pipeline: Pipeline, shard: str) -> Mapping[str, duck.View]:
    duplicates = pl.DataFrame(schema={"doc_id": pl.String})
    if pipeline.store.manifest("embedding_index"):
        rows = pipeline.store.read("embedding_index", WHOLE, "duplicates", ["doc_id", "shard"])
        duplicates = rows.filter(pl.col("shard") == shard).select("doc_id")
    return {
        "documents": ("corpus_documents", [shard], "documents"),
        "chunks": ("chunk_embeddings", [shard], "chunks"),
        "duplicates": duplicates,
        "vectors": lambda: _table(pipeline).reader(["chunk_id", "doc_id", "vector"], shard),
        "summary": duck.summary(pipeline.store, "chunk_embeddings", shard, ["window_tokens"]),
    }


def _index_views(pipeline: Pipeline, shard: str) -> Mapping[str, duck.View]:
    tag = pipeline.store.require("embedding_index").summary["tag"]
    return {
        "shards": ("embedding_index", [shard], "shards"),
        "indexed": lambda: _table(pipeline, tag).reader(["chunk_id", "doc_id", "shard"]),
        "summary": duck.summary(
            pipeline.store, "embedding_index", shard, ["recall", "recall_queries"]
        ),
    }


chunk_checks = sql_checks(
    "chunk_embeddings",
    _FOLDER,
    [
        SqlCheck("one_vector_per_chunk", "The LanceDB table holds one vector per chunk."),
        SqlCheck("vectors_unit_length", "Vectors are finite and of length 1."),
        SqlCheck(
            "chunks_within_documents",
            "Every document has chunks; they are in order, inside its text and the window.",
        ),
    ],
    _chunk_views,
    lambda _: {},
)

index_checks = sql_checks(
    "embedding_index",
    _FOLDER,
    [
        SqlCheck("no_document_indexed_twice", "A document stands in the index once."),
        SqlCheck("index_rows_reconcile", "The index holds every chunk of its shards."),
        SqlCheck(
            "recall_reached",
            "recall@K against exact search reaches its target.",
            blocking=False,
            severity=dg.AssetCheckSeverity.WARN,
        ),
    ],
    _index_views,
    lambda s: {"target_recall": s.embedding.target_recall},
    partitioned=False,
)
