"""The figures of a pipeline, gathered from the manifests and tables of its shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from entropylong_assets.settings.model import VerificationSettings
from entropylong_assets.stages.verification.false_acceptance import Rate, false_acceptance
from entropylong_assets.storage.tables import TableStore


@dataclass(frozen=True)
class Figures:
    """Counts over shards; gains are means over pairs accepted by the rule in force."""

    shards: int
    documents: int
    roots: int
    anchors: int
    chunks: int
    pairs: int
    pairs_scored: int
    accepted_plain: int
    accepted_calibrated: int
    mean_gain: float | None
    mean_calibrated_gain: float | None
    verdicts: dict[str, int]
    false_acceptance: dict[str, Rate]
    samples: pl.DataFrame
    """sample_id, n_root, n_verified, n_negative, n_padding, dependencies."""


def _sum(summaries: Sequence[dict[str, Any]], name: str) -> int:
    return sum(int(summary.get(name, 0)) for summary in summaries)


def gather(store: TableStore, shards: Sequence[str], settings: VerificationSettings) -> Figures:
    """Figures over these shards, all of which have samples. Raises TableError where one has not."""

    def summaries(asset: str) -> list[dict[str, Any]]:
        return [store.require(asset, shard).summary for shard in shards]

    documents, verified = summaries("corpus_documents"), summaries("verified_dependencies")
    pairs = store.read_all("verified_dependencies", shards, "pairs")
    controls = store.read_all("verified_dependencies", shards, "controls")
    accepted = pairs.filter("accepted")
    verdicts: Counter[str] = Counter()
    for summary in verified:
        verdicts.update(summary["verdicts"])
    samples = pl.concat(
        store.read("long_context_samples", shard, "samples").drop("input_ids") for shard in shards
    )
    dependencies = pl.concat(
        store.read("long_context_samples", shard, "dependencies", ["sample_id"]) for shard in shards
    )
    counted = dependencies.group_by("sample_id").agg(pl.len().alias("dependencies"))
    return Figures(
        shards=len(shards),
        documents=_sum(documents, "documents"),
        roots=_sum(summaries("entropy_scores"), "roots"),
        anchors=_sum(summaries("candidate_contexts"), "anchors"),
        chunks=_sum(summaries("chunk_embeddings"), "chunks"),
        pairs=_sum(verified, "pairs"),
        pairs_scored=_sum(verified, "pairs_scored"),
        accepted_plain=_sum(verified, "accepted_plain"),
        accepted_calibrated=_sum(verified, "accepted_calibrated"),
        mean_gain=_mean(accepted["gain"]),
        mean_calibrated_gain=_mean(accepted["calibrated_gain"]),
        verdicts=dict(verdicts),
        false_acceptance=false_acceptance(
            pairs.select("root_id", "anchor", "entropy", "surprisal").unique(), controls, settings
        ),
        samples=samples.join(counted, on="sample_id", how="left")
        .with_columns(pl.col("dependencies").fill_null(0))
        .sort("sample_id"),
    )


def _mean(values: pl.Series) -> float | None:
    present = values.drop_nulls().to_numpy()
    return float(np.mean(present)) if len(present) else None
