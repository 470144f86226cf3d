"""How assets look in the UI: groups in the order of the pipeline, owners, columns."""

from __future__ import annotations

from collections.abc import Mapping

import dagster as dg
import polars as pl

from entropylong_assets.orchestration.metadata import table_schema

OWNERS = ("team:long-context-data",)
"""Change it to the team, or the addresses, that answer for the data."""

GROUPS: Mapping[str, str] = {
    "corpus_documents": "1_corpus",
    "chunk_embeddings": "2_embeddings",
    "embedding_index": "2_embeddings",
    "entropy_scores": "3_entropy",
    "candidate_contexts": "4_retrieval",
    "verified_dependencies": "5_verification",
    "long_context_samples": "6_samples",
    "null_calibration": "9_audits",
    "cross_model_audit": "9_audits",
    "long_range_audit": "9_audits",
    "training_dataset": "7_training_data",
}
"""Numbered, because the UI lists groups by name."""

MAIN_TABLE: Mapping[str, str] = {
    "corpus_documents": "documents",
    "chunk_embeddings": "chunks",
    "embedding_index": "shards",
    "entropy_scores": "roots",
    "candidate_contexts": "candidates",
    "verified_dependencies": "pairs",
    "long_context_samples": "samples",
    "null_calibration": "rates",
    "cross_model_audit": "pairs",
    "long_range_audit": "recipes",
}
"""The table whose columns and rows stand for the asset."""


def presented(spec: dg.AssetSpec) -> dg.AssetSpec:
    """The spec with its group, owners and columns."""
    asset = spec.key.to_user_string()
    metadata = dict(spec.metadata)
    if asset in MAIN_TABLE:
        metadata["dagster/column_schema"] = table_schema(asset, MAIN_TABLE[asset])
    return spec.replace_attributes(
        group_name=GROUPS.get(asset, spec.group_name), owners=OWNERS, metadata=metadata
    )


def _link(shard: str) -> str:
    return f"[{shard}](/assets/corpus_documents?view=partitions&partition={shard})"


def shard_links(shard: str, contexts: pl.DataFrame, samples: int) -> str:
    """Markdown table that leads from samples of a shard to the shards of their documents.

    `contexts` has a row for each passage of the first samples, with sample_id and shard;
    `samples`: how many there are in all.
    """
    lines = ["| sample | roots from | contexts from |", "| --- | --- | --- |"]
    for (sample,), rows in contexts.group_by("sample_id", maintain_order=True):
        links = ", ".join(_link(s) for s in sorted(set(rows["shard"].to_list())))
        lines.append(f"| {sample} | {_link(shard)} | {links} |")
    hidden = samples - (len(lines) - 2)
    return "\n".join(lines) + (f"\n\n… and {hidden:,} more samples" if hidden > 0 else "")
