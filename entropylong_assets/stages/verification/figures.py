"""What a shard's verification comes to, gathered batch by batch."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import polars as pl

from entropylong_assets.settings.model import VerificationSettings
from entropylong_assets.stages.entropy.histogram import Histogram
from entropylong_assets.stages.verification.false_acceptance import chance_of, passed_by_root

_COUNTED = ("accepted", "accepted_plain", "accepted_calibrated")
_GAINS = ("gain", "calibrated_gain")


class Figures:
    """Counts, means, chance, the strongest pairs and the spread of gains of one shard.

    A root comes in one batch, whole. Memory holds a few numbers a root.
    """

    def __init__(self, settings: VerificationSettings, best: int = 5) -> None:
        self._settings, self._n_best = settings, best
        self._counts: Counter[str] = Counter()
        self._verdicts: Counter[str] = Counter()
        self._sums = dict.fromkeys(_GAINS, 0.0)
        self._with = dict.fromkeys(_GAINS, 0)
        self._chance: list[pl.DataFrame] = []
        self.best = pl.DataFrame()
        self.gains = {name: Histogram(-1, 1, 80) for name in _GAINS}

    def add(self, pairs: pl.DataFrame, controls: pl.DataFrame) -> None:
        """The rows of `pairs` and `controls` of a few roots."""
        scored = pairs.filter(pl.col("entropy_context").is_not_null())
        accepted = pairs.filter("accepted")
        self._verdicts.update(dict(pairs["verdict"].value_counts().iter_rows()))
        self._counts["pairs"] += len(pairs)
        self._counts["pairs_scored"] += len(scored)
        self._counts["contexts_scored"] += scored.select("root_id", "chunk_id").n_unique()
        for name in _COUNTED:
            self._counts[name] += int(pairs[name].sum())
        for name in _GAINS:
            gains = accepted[name].drop_nulls()
            # Exact, so that it is the same for a batch that was made now and one taken up.
            self._sums[name] += math.fsum(gains)
            self._with[name] += len(gains)
            self.gains[name].add(pairs[name])
        self._chance.append(passed_by_root(pairs, controls, self._settings))
        best = pl.concat([self.best, accepted]) if len(self.best) else accepted
        self.best = best.sort("gain", descending=True, maintain_order=True).head(self._n_best)

    def summary(self) -> dict[str, Any]:
        """Counts by verdict, acceptance under both rules, mean gains of accepted pairs, and the
        share that passes by chance."""
        names = ("pairs", "pairs_scored", "contexts_scored", *_COUNTED)
        means = {
            f"mean_{name}": self._sums[name] / self._with[name] if self._with[name] else None
            for name in _GAINS
        }
        return {
            **{name: self._counts[name] for name in names},
            **means,
            "verdicts": dict(sorted(self._verdicts.items())),
            **chance_of(self._chance, self._settings),
        }
