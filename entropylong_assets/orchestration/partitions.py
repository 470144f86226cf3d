"""The partitions of the pipeline: one a shard of the corpus."""

from __future__ import annotations

import dagster as dg

corpus_shard = dg.DynamicPartitionsDefinition(name="corpus_shard")

PIPELINE = (
    "corpus_documents",
    "chunk_embeddings",
    "embedding_index",
    "entropy_scores",
    "candidate_contexts",
    "verified_dependencies",
    "long_context_samples",
)
"""The assets in the order in which data flows."""
