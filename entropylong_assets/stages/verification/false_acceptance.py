"""How much of what the rule accepts is chance.

Each control context of a root is held out in turn and judged like a candidate against the
others. It is a random text, so what passes passes by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import beta
from scipy.stats import t as student

from entropylong_assets.settings.model import VerificationSettings
from entropylong_assets.stages.verification.gain import judge

RULES = ("plain", "calibrated")

_NO_ROOTS = pl.DataFrame(
    schema={"root_id": pl.String, "total": pl.Int64, **dict.fromkeys(RULES, pl.Int64)}
)


@dataclass(frozen=True)
class Rate:
    """A share with its 95% interval."""

    passed: int
    total: int
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.passed / self.total if self.total else 0.0


def clustered_rate(
    passed_C: NDArray[np.int64], total_C: NDArray[np.int64], confidence: float = 0.95
) -> Rate:
    """The share of all trials that pass, where trials come in clusters (one a root).

    passed_C, total_C: per cluster. Anchors of one root behind one control are not independent:
    the interval is Clopper-Pearson's on an effective number of trials (Korn and Graubard, 1998),
    the number divided by the design effect of the ratio estimator, never below 1, and the less the
    fewer clusters that effect was estimated from. Where nothing passed, everything did, or all
    trials are of one cluster, the effect can't be estimated; trials then count as independent, and
    the interval is narrower than it should be.
    """
    passed, total = int(passed_C.sum()), int(total_C.sum())
    if total == 0:
        return Rate(0, 0, 0.0, 1.0)
    share, clusters = passed / total, len(total_C)
    effective, tail = float(total), (1 - confidence) / 2
    if 0 < passed < total and clusters > 1:
        residual = passed_C - share * total_C
        variance = clusters / (clusters - 1) * float((residual**2).sum()) / total**2
        if variance > 0:
            of_trials, of_clusters = student.ppf(1 - tail, [total - 1, clusters - 1])
            estimate = share * (1 - share) / variance * (of_trials / of_clusters) ** 2
            effective = min(effective, float(estimate))
    hits = share * effective
    low = float(beta.ppf(tail, hits, effective - hits + 1)) if passed else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, effective - hits)) if passed < total else 1.0
    return Rate(passed, total, low, high)


def acceptance_rate(
    scored: pl.DataFrame, column: str = "accepted", confidence: float = 0.95
) -> Rate:
    """Share of rows for which `column` is true, with its interval; roots are the clusters."""
    by_root = scored.group_by("root_id").agg(
        pl.col(column).sum().cast(pl.Int64).alias("passed"), pl.len().cast(pl.Int64).alias("total")
    )
    by_root = by_root.sort("root_id")
    return clustered_rate(by_root["passed"].to_numpy(), by_root["total"].to_numpy(), confidence)


def held_out_controls(anchors: pl.DataFrame, controls: pl.DataFrame) -> pl.DataFrame:
    """Each control as a candidate against the mean of the other controls of its anchor.

    `anchors`: root_id, anchor, entropy, surprisal. `controls`: root_id, control, anchor, entropy,
    surprisal. The result has the columns that `judge` wants.
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
    """Of each root: (anchor, control) pairs in all, and those that pass by chance under each rule.

    Columns: root_id, total, plain, calibrated. `pairs` repeat the scores of an anchor alone.
    """
    anchors = pairs.select("root_id", "anchor", "entropy", "surprisal").unique()
    judged = judge(held_out_controls(anchors, controls), settings)
    return judged.group_by("root_id").agg(
        pl.len().cast(pl.Int64).alias("total"),
        *(pl.col(f"accepted_{rule}").sum().cast(pl.Int64).alias(rule) for rule in RULES),
    )


def rates_of(by_root: pl.DataFrame) -> dict[str, Rate]:
    """Share of (anchor, control) pairs that pass by chance, under `plain` and `calibrated`."""
    by_root = by_root.sort("root_id")
    total = by_root["total"].to_numpy()
    return {rule: clustered_rate(by_root[rule].to_numpy(), total) for rule in RULES}


def false_acceptance(
    anchors: pl.DataFrame, controls: pl.DataFrame, settings: VerificationSettings
) -> dict[str, Rate]:
    """The same of all roots at once."""
    return rates_of(passed_by_root(anchors, controls, settings))


def chance_of(by_root: Sequence[pl.DataFrame], settings: VerificationSettings) -> dict[str, Any]:
    """Figures of the false acceptance of a shard: under the rule in force, and under both.

    by_root: what `passed_by_root` gave for its roots, a few at a time.
    """
    rates = rates_of(pl.concat([_NO_ROOTS, *by_root]))
    rate = rates[settings.rule]
    return {
        "control_trials": rate.total,
        "false_acceptance": rate.value if rate.total else None,
        "false_acceptance_low": rate.low if rate.total else None,
        "false_acceptance_high": rate.high if rate.total else None,
        **{f"false_acceptance_{rule}": r.value for rule, r in rates.items() if r.total},
    }
