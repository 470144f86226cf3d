"""Entropies of a root and its anchors: high-entropy positions (paper, section 3.1), and on request
positions with a surprising token.

Legend: T tokens of a root.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from entropylong_assets.stages.entropy.scoring import PositionScores, Scorer, ScoringRequest
from entropylong_assets.stages.entropy.settings import EntropySettings


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of the population (nats), in float64."""

    mean: float
    std: float

    def threshold(self, alpha: float) -> float:
        """μ + α·σ."""
        return self.mean + alpha * self.std


@dataclass(frozen=True)
class Anchors:
    """The anchors of a root, and the moments of its entropies and surprisals.

    positions: all anchors, ascending. by_surprisal: those of them with H_t ≤ τ.
    """

    entropy: Moments
    surprisal: Moments
    positions: tuple[int, ...]
    by_surprisal: tuple[int, ...]


def find_anchors(
    entropies_T: NDArray[np.float32], surprisals_T: NDArray[np.float32], settings: EntropySettings
) -> Anchors:
    """Find the anchors of one root.

    entropies_T, surprisals_T: float32 [T], nats, NaN where undefined. μ and σ (of the population)
    are computed in float64 over all defined positions, so that the SQL check finds the same
    thresholds. Positions before `min_anchor_position` count in μ and σ, but are not anchors. A root
    without a defined position has no anchors.
    """
    entropy, surprisal = _moments(entropies_T), _moments(surprisals_T)
    # Comparisons with NaN are false.
    is_uncertain_T = entropies_T.astype(np.float64) > entropy.threshold(settings.alpha)
    is_surprising_T = np.zeros_like(is_uncertain_T)
    if settings.anchors == "both":
        is_surprising_T = surprisals_T.astype(np.float64) > surprisal.threshold(settings.alpha)
        is_surprising_T &= entropies_T.astype(np.float64) > settings.min_entropy
        is_surprising_T &= ~is_uncertain_T

    def positions(is_anchor_T: NDArray[np.bool_]) -> tuple[int, ...]:
        indices = np.flatnonzero(is_anchor_T)
        return tuple(int(t) for t in indices[indices >= settings.min_anchor_position])

    return Anchors(
        entropy, surprisal, positions(is_uncertain_T | is_surprising_T), positions(is_surprising_T)
    )


def is_anchor(settings: EntropySettings, alpha: float) -> pl.Expr:
    """Return an expression: whether a position is an anchor at another α.

    The frame has the columns entropy and surprisal of the position, and mean, std, surprisal_mean
    and surprisal_std of its root. The minimum position of an anchor is not applied.
    """
    entropy, surprisal = (pl.col(name).cast(pl.Float64) for name in ("entropy", "surprisal"))
    is_uncertain = entropy > pl.col("mean") + alpha * pl.col("std")
    if settings.anchors == "entropy":
        return is_uncertain
    threshold = pl.col("surprisal_mean") + alpha * pl.col("surprisal_std")
    return is_uncertain | ((surprisal > threshold) & (entropy > settings.min_entropy))


def _moments(values_T: NDArray[np.float32]) -> Moments:
    defined = values_T[~np.isnan(values_T)].astype(np.float64)
    return Moments(float(defined.mean()), float(defined.std())) if len(defined) else Moments(0, 0)


def root_request(root_ids: Sequence[int], bos_ids: Sequence[int]) -> ScoringRequest:
    """Make the request that scores a whole root alone, after the BOS token if there is one.

    Without a BOS token, position 0 has no prefix and therefore no score.
    """
    first = 1 - min(len(bos_ids), 1)
    return ScoringRequest(
        np.asarray([*bos_ids, *root_ids], np.int64),
        np.arange(first, len(root_ids), dtype=np.int64) + len(bos_ids),
    )


def score_roots(
    roots: Iterable[tuple[str, list[int]]],
    scorer: Scorer,
    bos_ids: Sequence[int],
    settings: EntropySettings,
    batch: int = 32,
    on_progress: Callable[[int, float], None] = lambda *_: None,
) -> Iterator[dict[str, Any]]:
    """Yield rows of the table `roots`.

    roots: pairs of a root's id and its token ids. batch: roots scored at once. on_progress: called
    after each forward pass with the number of its tokens and the scored share of the batch's
    tokens, from 0 to 1.
    """
    pending: list[tuple[str, list[int]]] = []

    def flush() -> Iterator[dict[str, Any]]:
        requests = [root_request(ids, bos_ids) for _, ids in pending]
        total = sum(int(r.positions_N[-1]) for r in requests if len(r.positions_N))
        done = 0

        def on_pass(tokens: int) -> None:
            nonlocal done
            done += tokens
            on_progress(tokens, min(done / max(total, 1), 1.0))

        for (root_id, ids), scores in zip(pending, scorer.score(requests, on_pass), strict=True):
            yield _root_row(root_id, ids, scores, settings)
        pending.clear()

    for root in roots:
        pending.append(root)
        if len(pending) == batch:
            yield from flush()
    yield from flush()


def _root_row(
    root_id: str, token_ids: list[int], scores: PositionScores, settings: EntropySettings
) -> dict[str, Any]:
    undefined = np.full(len(token_ids) - len(scores.entropy_N), np.nan, np.float32)
    entropies_T = np.concatenate([undefined, scores.entropy_N])
    surprisals_T = np.concatenate([undefined, scores.surprisal_N])
    anchors = find_anchors(entropies_T, surprisals_T, settings)
    return {
        "root_id": root_id,
        "token_ids": token_ids,
        "entropies": _null_for_nan(entropies_T),
        "surprisals": _null_for_nan(surprisals_T),
        "mean": anchors.entropy.mean,
        "std": anchors.entropy.std,
        "threshold": anchors.entropy.threshold(settings.alpha),
        "surprisal_mean": anchors.surprisal.mean,
        "surprisal_std": anchors.surprisal.std,
        "anchors": list(anchors.positions),
        "by_surprisal": list(anchors.by_surprisal),
    }


def _null_for_nan(values_T: NDArray[np.float32]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values_T]
