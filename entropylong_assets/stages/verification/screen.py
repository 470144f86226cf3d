"""The approximate screen: score all contexts cheaply, and the doubtful ones again exactly.

Off unless `verification.screen` names one. A sample of the contexts of each batch of roots, drawn
by hash, is scored both ways. One half of it gives the margin: how far a cheap gain or surprisal
may be off. Pairs whose verdict could change within the margin are scored exactly; the rest keeps
its cheap scores. The other half, to which no margin was fitted, measures how many of the exactly
accepted pairs are kept (recall) and how many of those kept are right (precision).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from entropylong_assets.stages.entropy.scoring import PositionScores, Scorer
from entropylong_assets.stages.verification.registry import RULES, Key
from entropylong_assets.stages.verification.requests import ContextRequest
from entropylong_assets.stages.verification.settings import VerificationSettings

SAMPLE = 64
"""Maximum number of contexts of a batch scored both ways; also at most one in four."""

QUANTILE = 0.995
"""Share of the observed errors that the margin covers."""


class Margin(NamedTuple):
    """How far cheap scores may be off: a gain, and a surprisal (nats)."""

    gain: float
    surprisal: float


def fit_margin(cheap: pl.DataFrame, exact: pl.DataFrame, settings: VerificationSettings) -> Margin:
    """Fit the margin to judged pairs, the same rows scored both ways."""

    def covering(column: str) -> float:
        errors = (cheap[column].cast(pl.Float64) - exact[column].cast(pl.Float64)).abs()
        errors = errors.filter(errors.is_finite())
        return float(np.quantile(errors.to_numpy(), QUANTILE)) if len(errors) else 0.0

    return Margin(covering(RULES[settings.rule].gain), covering("surprisal_context"))


def doubtful(
    cheap: pl.DataFrame, margin: Margin, settings: VerificationSettings
) -> NDArray[np.bool_]:
    """Return which judged pairs could change their verdict within the margin.

    These are the pairs that the rule in force accepts with scores better by the margin, and rejects
    with scores worse by it.
    """
    return _accepted_if(cheap, margin, 1, settings) & ~_accepted_if(cheap, margin, -1, settings)


def _accepted_if(
    pairs: pl.DataFrame, margin: Margin, better: int, settings: VerificationSettings
) -> NDArray[np.bool_]:
    """Which pairs the rule in force accepts if scores are better (1) or worse (-1) by a margin."""
    entropy, surprisal = (pl.col(f"{name}_context") for name in ("entropy", "surprisal"))
    rule = RULES[settings.rule]
    moved = pairs.with_columns(
        *(pl.col(name) + better * margin.gain for name in ("gain", "calibrated_gain")),
        entropy.cast(pl.Float64) - better * margin.gain * pl.col("entropy"),
        surprisal.cast(pl.Float64) - better * margin.surprisal,
    )
    accepts = rule.accepts(settings) & pl.col(rule.gain).is_not_nan()
    return moved.select(accepts.fill_null(False).alias("accepted"))["accepted"].to_numpy()


@dataclass
class ScreenFigures:
    """Counts of one batch, and its margins; `add` makes them those of a shard."""

    contexts: int = 0
    contexts_rechecked: int = 0
    contexts_sampled: int = 0
    sample_pairs: int = 0
    sample_accepted: int = 0
    sample_kept: int = 0
    sample_wrongly_kept: int = 0
    margin_gain: float = 0.0
    margin_surprisal: float = 0.0

    def add(self, other: ScreenFigures) -> None:
        """Add the counts, and keep the largest margins."""
        for name, value in vars(other).items():
            own = getattr(self, name)
            setattr(self, name, max(own, value) if name.startswith("margin") else own + value)

    def metadata(self) -> dict[str, float]:
        """Return all of them, with recall and precision if the sample had an accepted pair."""
        figures: dict[str, float] = dict(vars(self))
        kept = self.sample_kept + self.sample_wrongly_kept
        if self.contexts:
            figures["rechecked_share"] = self.contexts_rechecked / self.contexts
        if self.sample_accepted:
            figures["recall"] = self.sample_kept / self.sample_accepted
        if kept:
            figures["precision"] = self.sample_kept / kept
        return figures


JudgeScores = Callable[[dict[Key, PositionScores]], pl.DataFrame]
"""Scores of contexts to their judged pairs, one row per pair, in an order that depends on the set
of contexts alone."""


@dataclass
class Screen:
    """Screens the contexts of one batch of roots."""

    cheap: Scorer
    settings: VerificationSettings
    figures: ScreenFigures = field(default_factory=ScreenFigures)
    learned: list[pl.DataFrame] = field(default_factory=list)
    """Nothing: every batch fits its own margin."""
    _margin: Margin | None = None

    def score(
        self,
        requests: Mapping[Key, ContextRequest],
        exact: Scorer,
        judge_scores: JudgeScores,
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> dict[Key, PositionScores]:
        """Return scores of all contexts: exact if sampled or doubtful, else cheap."""

        def scored(scorer: Scorer, keys: Sequence[Key]) -> dict[Key, PositionScores]:
            scores = scorer.score([requests[key] for key in keys], on_progress)
            return dict(zip(keys, scores, strict=True))

        if not requests:
            return {}
        cheap_scores = scored(self.cheap, list(requests))
        exact_scores: dict[Key, PositionScores] = {}
        if self._margin is None:
            sample = _sample(list(requests))
            exact_scores = scored(exact, sample)
            self._margin = self._measure(sample, cheap_scores, exact_scores, judge_scores)
        pairs = judge_scores(cheap_scores)
        doubted = pairs.filter(doubtful(pairs, self._margin, self.settings))
        contexts = doubted.select("root_id", "chunk_id").unique(maintain_order=True)
        again = [key for key in contexts.iter_rows() if key not in exact_scores]
        exact_scores |= scored(exact, again)
        self.figures.contexts += len(requests)
        self.figures.contexts_rechecked += len(again)
        return cheap_scores | exact_scores

    def _measure(
        self,
        sample: Sequence[Key],
        cheap: dict[Key, PositionScores],
        exact: dict[Key, PositionScores],
        judge_scores: JudgeScores,
    ) -> Margin:
        """Fit the margin to one half of the sample; measure recall and precision on the other."""
        fitted, held_out = sample[0::2], sample[1::2]

        def both(keys: Sequence[Key]) -> tuple[pl.DataFrame, pl.DataFrame]:
            cheap_pairs, exact_pairs = (
                judge_scores({k: scores[k] for k in keys}) for scores in (cheap, exact)
            )
            return cheap_pairs, exact_pairs

        margin = fit_margin(*both(fitted), self.settings)
        figures = self.figures
        figures.contexts_sampled = len(sample)
        figures.margin_gain, figures.margin_surprisal = margin
        if held_out:
            of_cheap, of_exact = both(held_out)
            rechecked = doubtful(of_cheap, margin, self.settings)
            accepted = of_exact["accepted"].to_numpy()
            kept = np.where(rechecked, accepted, of_cheap["accepted"].to_numpy())
            figures.sample_pairs = len(accepted)
            figures.sample_accepted = int(accepted.sum())
            figures.sample_kept = int((kept & accepted).sum())
            figures.sample_wrongly_kept = int((kept & ~accepted).sum())
        return margin


def _sample(keys: Sequence[Key]) -> list[Key]:
    """Contexts with the lowest hashes: whether one is chosen does not depend on the order."""
    count = min(SAMPLE, max(2, len(keys) // 4))
    by_hash = sorted(keys, key=lambda key: hashlib.sha256("\n".join(key).encode()).digest())
    return by_hash[:count]
