"""An overview of a dataset, from the summaries of its shards and single columns of its tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import polars as pl

from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.verification.false_acceptance import (
    Rate,
    pooled_false_acceptance,
)
from entropylong_assets.stages.verification.tables import (
    VERIFIED_DEPENDENCIES,
    VerifiedDependenciesSummary,
)
from entropylong_assets.storage.duck import Views, querying
from entropylong_assets.storage.schemas import S, TableSet
from entropylong_assets.storage.tables import TableStore

LISTED_SAMPLES = 40
"""Samples that an overview lists."""

_THREADS = 16

_SAMPLES = """
SELECT s.*, coalesce(d.dependencies, 0) AS dependencies
FROM (
    SELECT * EXCLUDE input_ids FROM samples ORDER BY sample_id LIMIT $listed
) AS s
LEFT JOIN (
    SELECT sample_id, count(*) AS dependencies FROM dependencies GROUP BY sample_id
) AS d USING (sample_id)
ORDER BY sample_id
"""


@dataclass(frozen=True)
class Overview:
    """Counts over shards; mean gains are over the pairs that the rule in force accepts."""

    shards: int
    roots: int
    anchors: int
    pairs: int
    pairs_scored: int
    accepted_by: dict[str, int]
    """Pairs that each compared rule accepts."""
    mean_gain: float | None
    mean_calibrated_gain: float | None
    verdicts: dict[str, int]
    """Pairs by verdict."""
    false_acceptance: dict[str, Rate]
    """Share of held-out controls that each compared rule accepts."""
    n_samples: int
    tokens_by_role: dict[str, int]
    """Tokens of all samples."""
    samples: pl.DataFrame
    """The first `LISTED_SAMPLES`: sample_id, n_root, n_verified, n_negative, n_padding,
    dependencies."""


def gather(store: TableStore, settings: Settings, shards: Sequence[str] | None = None) -> Overview:
    """Gather the overview of a dataset.

    shards: None for all that have samples. Memory holds one shard's controls and anchors at a time.
    Raises TableError if a table is missing or damaged.
    """
    if shards is None:
        shards = store.shards(LONG_CONTEXT_SAMPLES)
    scored = _summaries(store, ENTROPY_SCORES, shards)
    verified = _summaries(store, VERIFIED_DEPENDENCIES, shards)
    packed = _summaries(store, LONG_CONTEXT_SAMPLES, shards)
    return Overview(
        shards=len(shards),
        roots=sum(summary.roots for summary in scored),
        anchors=sum(summary.anchors for summary in scored),
        pairs=sum(summary.pairs for summary in verified),
        pairs_scored=sum(summary.pairs_scored for summary in verified),
        accepted_by=_sum(summary.accepted_by for summary in verified),
        mean_gain=_mean(verified, lambda summary: summary.mean_gain),
        mean_calibrated_gain=_mean(verified, lambda summary: summary.mean_calibrated_gain),
        verdicts=_sum(summary.verdicts for summary in verified),
        false_acceptance=pooled_false_acceptance(store, shards, settings.verification),
        n_samples=sum(summary.samples for summary in packed),
        tokens_by_role=_sum(summary.tokens for summary in packed),
        samples=_list_samples(store, shards),
    )


def _list_samples(store: TableStore, shards: Sequence[str]) -> pl.DataFrame:
    """The first samples, without their tokens, and the number of dependencies of each."""
    names = ("samples", "dependencies")
    views: Views = {name: (LONG_CONTEXT_SAMPLES, shards, name) for name in names}
    if not shards:
        return pl.DataFrame()
    with querying(store, views) as session:
        return session.sql(_SAMPLES, params={"listed": LISTED_SAMPLES}).pl()


def _summaries(store: TableStore, tables: TableSet[S], shards: Sequence[str]) -> list[S]:
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda shard: store.summary(tables, shard), shards))


def _sum(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)


def _mean(
    summaries: Sequence[VerifiedDependenciesSummary],
    mean: Callable[[VerifiedDependenciesSummary], float | None],
) -> float | None:
    """Mean over all accepted pairs, from the means of the shards."""
    weighted = [(mean(summary), summary.accepted) for summary in summaries]
    known = [(value, weight) for value, weight in weighted if value is not None and weight]
    weights = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / weights if weights else None
