"""Counts and statistics of a shard's verification, gathered batch by batch."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import polars as pl

from entropylong_assets.stages.diversity import spreads, use_keys
from entropylong_assets.stages.entropy.histogram import Histogram
from entropylong_assets.stages.verification.false_acceptance import passed_by_root, rates_by_rule
from entropylong_assets.stages.verification.gain import accepted_by
from entropylong_assets.stages.verification.registry import evaluated_rules
from entropylong_assets.stages.verification.settings import VerificationSettings
from entropylong_assets.stages.verification.tables import FalseAcceptance

_GAINS = ("gain", "calibrated_gain")


class ShardCounts:
    """Counts, mean gains, false-acceptance rates, strongest pairs and histograms of one shard.

    All rows of a root belong to one batch. Memory holds a few numbers per root and accepted pair.
    """

    def __init__(self, settings: VerificationSettings, n_best: int = 5) -> None:
        """n_best: number of accepted pairs in `best`, those with the highest gain."""
        self._settings, self._n_best = settings, n_best
        self._counts: Counter[str] = Counter()
        self._verdicts: Counter[str] = Counter()
        self._accepted_by = dict.fromkeys(evaluated_rules(settings), 0)
        self._sums = dict.fromkeys(_GAINS, 0.0)
        self._defined = dict.fromkeys(_GAINS, 0)
        self._trials: list[pl.DataFrame] = []
        self._uses: list[pl.DataFrame] = []
        self._kinds: Counter[str] = Counter()
        self._shares: list[pl.DataFrame] = []
        self.best = pl.DataFrame()
        self.histograms = {name: Histogram(-1, 1, 80) for name in _GAINS}

    def add(self, pairs: pl.DataFrame, controls: pl.DataFrame) -> None:
        """Add rows of `pairs` and `controls`: those of a few roots."""
        scored = pairs.filter(pl.col("entropy_context").is_not_null())
        accepted = pairs.filter("accepted")
        self._verdicts.update(dict(pairs["verdict"].value_counts().iter_rows()))
        self._counts["pairs"] += len(pairs)
        self._counts["pairs_scored"] += len(scored)
        self._counts["contexts_scored"] += scored.select("root_id", "chunk_id").n_unique()
        self._counts["accepted"] += len(accepted)
        for rule in self._accepted_by:
            self._accepted_by[rule] += int(pairs.select(accepted_by(rule).sum()).item())
        for name in _GAINS:
            gains = accepted[name].drop_nulls()
            # Exact, so that a batch from a checkpoint adds the same as one computed now.
            self._sums[name] += math.fsum(gains)
            self._defined[name] += len(gains)
            self.histograms[name].add(pairs[name])
        self._trials.append(passed_by_root(pairs, controls, self._settings))
        self._uses.append(use_keys(accepted))
        best = pl.concat([self.best, accepted]) if len(self.best) else accepted
        self.best = best.sort("gain", descending=True, maintain_order=True).head(self._n_best)

    def add_evidence(self, evidence: pl.DataFrame) -> None:
        """Add rows of `evidence`."""
        self._kinds.update(dict(evidence["kind"].value_counts().iter_rows()))
        self._shares.append(evidence.select("kept", "removed"))

    def summary(self) -> dict[str, Any]:
        """Return the fields of `VerifiedDependenciesSummary` that follow from the rows."""
        names = ("pairs", "pairs_scored", "contexts_scored", "accepted")
        means = {
            f"mean_{name}": self._sums[name] / self._defined[name] if self._defined[name] else None
            for name in _GAINS
        }
        shares = {
            f"evidence_{name}": pl.concat(self._shares)[name].median() if self._shares else None
            for name in ("kept", "removed")
        }
        rates = rates_by_rule(pl.concat(self._trials), self._settings) if self._trials else {}
        return {
            **{name: self._counts[name] for name in names},
            "accepted_by": self._accepted_by,
            **means,
            "diversity": spreads(self._uses),
            "dependencies_by_kind": dict(sorted(self._kinds.items())),
            **shares,
            "verdicts": dict(sorted(self._verdicts.items())),
            "control_trials": rates[self._settings.rule].total if rates else 0,
            "false_acceptance": {
                rule: FalseAcceptance(
                    rate=rate.value, low=rate.low, high=rate.high, is_rough=rate.is_rough
                )
                for rule, rate in rates.items()
                if rate.total
            },
        }
