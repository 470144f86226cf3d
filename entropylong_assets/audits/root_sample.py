"""A sample of a shard's scored roots, chosen by hash, for the audits; and means over roots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import t as student

from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.samples.ordering import hash_key
from entropylong_assets.stages.stage import Partition
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES


@dataclass(frozen=True)
class ScoredRoot:
    """A root and its scored pairs.

    entropies, surprisals: by position, in nats; NaN where undefined (a position without a prefix).
    """

    root_id: str
    token_ids: list[int]
    entropies: NDArray[np.float32]
    surprisals: NDArray[np.float32]
    pairs: pl.DataFrame

    @property
    def anchors(self) -> list[int]:
        """Positions with a scored pair, ascending."""
        return sorted(set(self.pairs["anchor"].to_list()))


def sample_roots(partition: Partition) -> list[ScoredRoot]:
    """Choose at most `audit.roots` roots with scored pairs by hash; in the order of their ids."""
    settings, store, shard = partition.settings, partition.store, partition.shard
    pairs = store.read(VERIFIED_DEPENDENCIES, shard, "pairs").filter(
        pl.col("entropy_context").is_not_null()
    )
    by_root = {k[0]: v for k, v in pairs.partition_by("root_id", as_dict=True).items()}
    ranked = sorted(by_root, key=lambda r: hash_key(settings.seed, "audit", r))
    columns = ["root_id", "token_ids", "entropies", "surprisals"]
    roots = store.read(ENTROPY_SCORES, shard, "roots", columns)
    rows = {row["root_id"]: row for row in roots.iter_rows(named=True)}

    def floats(values: Sequence[float | None]) -> NDArray[np.float32]:
        return np.array([np.nan if v is None else v for v in values], np.float32)

    return [
        ScoredRoot(
            root_id,
            rows[root_id]["token_ids"],
            floats(rows[root_id]["entropies"]),
            floats(rows[root_id]["surprisals"]),
            by_root[root_id].sort("anchor", "rank", "chunk_id"),
        )
        for root_id in sorted(ranked[: settings.audit.roots])
    ]


@dataclass(frozen=True)
class Mean:
    """A mean over trials in clusters, with its 95% interval.

    value is None without trials; low and high are None with fewer than two clusters.
    """

    value: float | None
    low: float | None
    high: float | None
    trials: int
    clusters: int


def clustered_mean(
    values: Sequence[float], clusters: Sequence[str], confidence: float = 0.95
) -> Mean:
    """Mean of values in clusters (roots): clusters are independent, values of one cluster are not.

    The variance is that of the ratio estimator over clusters. The interval is Student's, with as
    many degrees of freedom as clusters, minus one.
    """
    if not len(values):
        return Mean(None, None, None, 0, 0)
    table = (
        pl.DataFrame({"value": np.asarray(values, np.float64), "cluster": list(clusters)})
        .group_by("cluster")
        .agg(pl.col("value").sum().alias("sum"), pl.len().alias("n"))
        .sort("cluster")
    )
    sums, counts = table["sum"].to_numpy(), table["n"].to_numpy()
    mean, n = float(sums.sum() / counts.sum()), len(table)
    if n < 2:
        return Mean(mean, None, None, int(counts.sum()), n)
    residual = sums - mean * counts
    error = float(np.sqrt(n / (n - 1) * (residual**2).sum()) / counts.sum())
    reach = float(student.ppf((1 + confidence) / 2, n - 1)) * error
    return Mean(mean, mean - reach, mean + reach, int(counts.sum()), n)
