"""The calibrated screen: estimates all contexts, and scores exactly those that may hold an accepted
pair.

No estimate is ever stored as a score. A context that is not scored exactly is rejected, with
`screened_out` as its verdict, so that every accepted pair has exact scores.

Legend: L tokens of a context.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from entropylong_assets.stages.entropy.scoring import PositionScores, Scorer
from entropylong_assets.stages.verification.calibration import KEY, Calibration
from entropylong_assets.stages.verification.registry import RULES, EstimatedContexts, Estimator, Key
from entropylong_assets.stages.verification.requests import ContextRequest
from entropylong_assets.stages.verification.screen import JudgeScores
from entropylong_assets.stages.verification.settings import VerificationSettings

LARGEST_GAIN, LARGEST_DROP = 2.0, 10.0
"""Features are clipped to these values (nats), positive or negative: larger ones carry no further
information."""


@dataclass
class CalibratedFigures:
    """Counts of a batch; `add` makes them those of a shard."""

    contexts: int = 0
    contexts_estimated: int = 0
    contexts_scored_both_ways: int = 0
    contexts_rescored: int = 0
    """Estimated contexts that the decision sent to the exact pass."""
    contexts_screened_out: int = 0

    def add(self, other: CalibratedFigures) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class CalibratedScreen:
    """Screens the contexts of one batch of roots, with what earlier batches have taught."""

    estimator: Estimator
    calibration: Calibration
    settings: VerificationSettings
    figures: CalibratedFigures = field(default_factory=CalibratedFigures)
    learned: list[pl.DataFrame] = field(default_factory=list)
    """Pairs that were estimated and scored exactly, for `Calibration.add`."""

    def score(
        self,
        requests: Mapping[Key, ContextRequest],
        exact: Scorer,
        judge_scores: JudgeScores,
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> dict[Key, PositionScores]:
        """Return the exact scores of the contexts that are not screened out."""
        self.figures.contexts += len(requests)
        if self.calibration.is_off:
            exact_scores = exact.score(list(requests.values()), on_progress)
            return dict(zip(requests, exact_scores, strict=True))
        scores: dict[Key, PositionScores] = {}
        for group in self.estimator.estimate(requests, exact, on_progress):
            scores |= self._score(group, requests, judge_scores)
        return {key: scores[key] for key in requests if key in scores}

    def _score(
        self,
        group: EstimatedContexts,
        requests: Mapping[Key, ContextRequest],
        judge_scores: JudgeScores,
    ) -> dict[Key, PositionScores]:
        rows = features(group, requests, judge_scores, self.settings)
        decision = self.calibration.decision
        keys = set(rows.select(KEY).iter_rows())
        kept = set(decision.keeps(rows).iter_rows()) if decision else keys
        both_ways = {key for key in keys if not self.calibration.decides(key[0])}
        chosen = [key for key in requests if key in kept or key in both_ways]
        scores = group.score_exactly(chosen)
        if both_ways:
            judged = judge_scores({key: scores[key] for key in chosen if key in both_ways})
            of_rows = list(rows.select(KEY).iter_rows())
            is_kept = pl.Series("is_kept", [key in kept for key in of_rows], pl.Boolean)
            is_both = pl.Series([key in both_ways for key in of_rows], dtype=pl.Boolean)
            taught = rows.with_columns(is_kept, is_audit=pl.lit(decision is not None)).filter(
                is_both
            )
            self.learned.append(taught.with_columns(judged["accepted"]))
        self.figures.contexts_estimated += len(keys)
        self.figures.contexts_scored_both_ways += len(both_ways)
        self.figures.contexts_rescored += len(kept - both_ways)
        self.figures.contexts_screened_out += len(keys) - len(chosen)
        return scores


def features(
    group: EstimatedContexts,
    requests: Mapping[Key, ContextRequest],
    judge_scores: JudgeScores,
    settings: VerificationSettings,
) -> pl.DataFrame:
    """Return KEY, anchor and the features of every pair of a group (float64).

    Of each estimate: the gain that the rule in force measures, and the drop of the surprisal below
    the lower of its values alone and given the controls (nats); by another model, gain and drop are
    those between its own two scores, without controls. Of the text: whether the true token
    occurs in the context, and whether it does so after the same token. And the similarity of query
    and chunk, entropy and surprisal of the root alone.
    """
    parts: list[pl.DataFrame] = []
    gain = RULES[settings.rule].gain
    drop = pl.min_horizontal("surprisal", "surprisal_control") - pl.col("surprisal_context")
    for name, scores in group.estimates.items():
        judged = judge_scores(dict(scores))
        if not parts:
            parts.append(judged.select(*KEY, "anchor", *_of_pair(judged, requests)))
        if name in group.alone:
            of_model = ("entropy_context", "surprisal_context")
            alone = judge_scores(dict(group.alone[name])).select(pl.col(of_model).name.suffix("_0"))
            both = pl.concat([judged.select(of_model), alone], how="horizontal").cast(pl.Float64)
            entropy, surprisal = (pl.col(f"{n}_0") - pl.col(n) for n in of_model)
            changes = (entropy / pl.col("entropy_context_0"), surprisal)
        else:
            both, changes = judged, (pl.col(gain), drop)
        parts.append(
            both.select(
                _limited(changes[0], LARGEST_GAIN).alias(f"{name}_gain"),
                _limited(changes[1], LARGEST_DROP).alias(f"{name}_drop"),
            )
        )
    return pl.concat(parts, how="horizontal")


def _limited(value: pl.Expr, largest: float) -> pl.Expr:
    """Clip a feature to ± `largest`. An undefined value becomes 0."""
    return value.cast(pl.Float64).fill_nan(None).fill_null(0.0).clip(-largest, largest)


def _of_pair(
    judged: pl.DataFrame, requests: Mapping[Key, ContextRequest]
) -> list[pl.Series | pl.Expr]:
    occurrences = [
        _occurs(requests[root_id, chunk_id], anchor)
        for root_id, chunk_id, anchor in judged.select(*KEY, "anchor").iter_rows()
    ]
    token, bigram = zip(*occurrences, strict=True) if occurrences else ((), ())
    return [
        pl.Series("token_in_context", token, pl.Float64),
        pl.Series("bigram_in_context", bigram, pl.Float64),
        *(pl.col(n).cast(pl.Float64).fill_nan(0.0) for n in ("similarity", "entropy", "surprisal")),
    ]


def _occurs(request: ContextRequest, anchor: int) -> tuple[float, float]:
    """Whether the token at an anchor occurs in the context, and whether with the one before it."""
    context_L: NDArray[np.int64] = request.context_ids
    at = request.context_tokens + anchor
    is_token = context_L == request.token_ids_T[at]
    is_bigram = is_token[1:] & (context_L[:-1] == request.token_ids_T[at - 1])
    return float(is_token.any()), float(is_bigram.any())
