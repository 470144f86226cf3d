"""False-acceptance rate: the share of control contexts that a rule accepts.

Each control context of a root is held out in turn and judged like a candidate, against the other
controls. It is a random text, so whatever is accepted is accepted by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import beta
from scipy.stats import t as student

from entropylong_assets.stages.verification.gain import ANCHOR_COLUMNS, accepted_by, judge
from entropylong_assets.stages.verification.registry import evaluated_rules
from entropylong_assets.stages.verification.settings import VerificationSettings
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.tables import TableStore

_ANCHOR = ("root_id", "anchor", "entropy", "surprisal", *ANCHOR_COLUMNS)

MIN_CLUSTERS = 10
"""Clusters with a trial that passes, and with one that fails, below which a rate is rough."""

ASSUMED_CORRELATION = 0.2
"""Correlation of trials within a cluster that is assumed for rough rates."""

ROUGH = f"few roots: interval assumes a correlation of {ASSUMED_CORRELATION:g} within a root"
"""What a reader must know of a rough rate. In tables, the word `rough` stands for it."""


@dataclass(frozen=True)
class Rate:
    """A share with its 95% interval."""

    passed: int
    total: int
    low: float
    high: float
    is_rough: bool = False
    """Too few clusters for their correlation to be estimated; the interval assumes one."""

    @property
    def value(self) -> float:
        return self.passed / self.total if self.total else 0.0

    def as_text(self, form: str = "{:.2%}") -> str:
        """Return the share and its interval, e.g. `0.78% (0.31% to 1.60%, rough)`."""
        interval = interval_text(self.low, self.high, self.is_rough, form)
        return f"{form.format(self.value)} ({interval})"


def interval_text(low: float, high: float, is_rough: bool, form: str = "{:.2%}") -> str:
    """Return an interval for people, which says whether it is rough."""
    return f"{form.format(low)} to {form.format(high)}{', rough' if is_rough else ''}"


def clustered_rate(
    passed_C: NDArray[np.int64], total_C: NDArray[np.int64], confidence: float = 0.95
) -> Rate:
    """Return the share of all trials that pass, where trials come in clusters (one per root).

    passed_C, total_C: per cluster. Anchors of one root given one control are not independent: the
    interval is that of Clopper and Pearson with an effective number of trials (Korn and Graubard,
    1998). This is the number of trials divided by the design effect of the ratio estimator, which
    is at least 1, and is lowered further because the effect was estimated from few clusters. Where
    fewer than `MIN_CLUSTERS` clusters have a trial that passes (or one that fails), the estimate
    can't be trusted: then the effect is at least that of trials with the correlation
    `ASSUMED_CORRELATION` within a cluster, and the rate is marked `is_rough`.
    """
    passed, total = int(passed_C.sum()), int(total_C.sum())
    if total == 0:
        return Rate(0, 0, 0.0, 1.0, is_rough=True)
    share, clusters = passed / total, int((total_C > 0).sum())
    design_effect, tail = 1.0, (1 - confidence) / 2
    if 0 < passed < total and clusters > 1:
        residual = passed_C - share * total_C
        variance = clusters / (clusters - 1) * float((residual**2).sum()) / total**2
        design_effect = max(design_effect, variance * total / (share * (1 - share)))
    is_rough = min((passed_C > 0).sum(), (passed_C < total_C).sum()) < MIN_CLUSTERS
    if is_rough:
        trials_per_cluster = float((total_C.astype(np.float64) ** 2).sum()) / total
        assumed = 1 + (trials_per_cluster - 1) * ASSUMED_CORRELATION
        design_effect = max(design_effect, assumed)
    freedom = [max(total - 1, 1), max(clusters - 1, 1)]
    of_trials, of_clusters = student.ppf(1 - tail, freedom)
    effective = total / design_effect * float(of_trials / of_clusters) ** 2
    hits = share * effective
    low = float(beta.ppf(tail, hits, effective - hits + 1)) if passed else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, effective - hits)) if passed < total else 1.0
    return Rate(passed, total, low, high, bool(is_rough))


def acceptance_rate(
    scored: pl.DataFrame, accepted: str | pl.Expr = "accepted", confidence: float = 0.95
) -> Rate:
    """Return the share of rows for which `accepted` is true; the clusters are the roots."""
    passed = pl.col(accepted) if isinstance(accepted, str) else accepted
    by_root = scored.group_by("root_id").agg(
        passed.sum().cast(pl.Int64).alias("passed"), pl.len().cast(pl.Int64).alias("total")
    )
    by_root = by_root.sort("root_id")
    return clustered_rate(by_root["passed"].to_numpy(), by_root["total"].to_numpy(), confidence)


def held_out_controls(anchors: pl.DataFrame, controls: pl.DataFrame) -> pl.DataFrame:
    """Return each control as a candidate, against the mean of the other controls of its anchor.

    anchors: root_id, anchor, entropy, surprisal, and `ANCHOR_COLUMNS` if known. controls: root_id,
    control, anchor, entropy, surprisal, and has_word if known. The result has the columns that
    `judge` reads.
    """
    others = (pl.len().over("root_id", "anchor") - 1).cast(pl.Float64)

    def mean_of_others(column: str) -> pl.Expr:
        total = pl.col(column).cast(pl.Float64).sum().over("root_id", "anchor")
        mean = (total - pl.col(column)) / others
        return pl.when(others > 0).then(mean).cast(pl.Float32)

    return (
        controls.with_columns(
            mean_of_others("entropy").alias("entropy_control"),
            mean_of_others("surprisal").alias("surprisal_control"),
        )
        .rename({"entropy": "entropy_context", "surprisal": "surprisal_context"})
        .join(anchors, on=["root_id", "anchor"])
        .with_columns(pl.lit(None, pl.String).alias("refusal"))
    )


def passed_by_root(
    pairs: pl.DataFrame, controls: pl.DataFrame, settings: VerificationSettings
) -> pl.DataFrame:
    """Count the (anchor, control) pairs of each root, and those that each rule accepts.

    pairs: any rows with root_id, anchor, entropy and surprisal of the anchors; rows may repeat.
    Columns of the result: root_id, rule, passed, total; one row per root and evaluated rule.
    """
    columns = [name for name in _ANCHOR if name in pairs.columns]
    anchors = pairs.select(columns).unique()
    judged = judge(held_out_controls(anchors, controls), settings)
    return pl.concat(
        judged.group_by("root_id").agg(
            pl.lit(rule).alias("rule"),
            accepted_by(rule).sum().cast(pl.Int64).alias("passed"),
            pl.len().cast(pl.Int64).alias("total"),
        )
        for rule in evaluated_rules(settings)
    )


def rates_by_rule(by_root: pl.DataFrame, settings: VerificationSettings) -> dict[str, Rate]:
    """Return the false-acceptance rate of each evaluated rule, from what `passed_by_root` counts.

    A rule without trials has a rate with `total` 0.
    """
    by_root = by_root.sort("root_id")

    def rate(rule: str) -> Rate:
        rows = by_root.filter(rule=rule)
        return clustered_rate(rows["passed"].to_numpy(), rows["total"].to_numpy())

    return {rule: rate(rule) for rule in evaluated_rules(settings)}


def false_acceptance(
    anchors: pl.DataFrame, controls: pl.DataFrame, settings: VerificationSettings
) -> dict[str, Rate]:
    """Return the false-acceptance rate of each evaluated rule, from all roots at once."""
    return rates_by_rule(passed_by_root(anchors, controls, settings), settings)


def pooled_false_acceptance(
    store: TableStore, shards: Sequence[str], settings: VerificationSettings
) -> dict[str, Rate]:
    """Return the false-acceptance rate of each evaluated rule over the tables of these shards.

    Rules without trials are left out. One shard is read at a time.
    """
    counts = []
    for shard in shards:
        controls = store.read(VERIFIED_DEPENDENCIES, shard, "controls")
        if len(controls):
            batches = store.batches(
                VERIFIED_DEPENDENCIES, shard, "pairs", list(_ANCHOR), rows=100_000
            )
            anchors = pl.concat(batch.unique() for batch in batches).unique()
            counts.append(passed_by_root(anchors, controls, settings))
    if not counts:
        return {}
    rates = rates_by_rule(pl.concat(counts), settings)
    return {rule: rate for rule, rate in rates.items() if rate.total}
