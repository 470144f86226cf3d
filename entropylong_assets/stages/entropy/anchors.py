"""Entropies of a root and its high-entropy positions (paper, section 3.1).

Legend: T tokens of a root.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entropylong_assets.stages.entropy.scoring import PositionScores, Scorer, ScoringRequest
from entropylong_assets.stages.entropy.settings import EntropySettings


@dataclass(frozen=True)
class Anchors:
    """Positions t with H_t > τ, and the μ, σ and τ of their root (nats)."""

    mean: float
    std: float
    threshold: float
    positions: tuple[int, ...]


def find_anchors(entropies_T: NDArray[np.float32], settings: EntropySettings) -> Anchors:
    """Find the anchors of one root.

    entropies_T: float32 [T], nats, NaN where undefined. μ and σ (of the population) are computed in
    float64 over all defined positions, so that the SQL check finds the same threshold. Positions
    before `min_anchor_position` count in μ and σ, but are not anchors. A root without a defined
    position has no anchors.
    """
    defined = entropies_T[~np.isnan(entropies_T)].astype(np.float64)
    if not len(defined):
        return Anchors(0.0, 0.0, 0.0, ())
    mean, std = float(defined.mean()), float(defined.std())
    threshold = mean + settings.alpha * std
    above = np.flatnonzero(entropies_T.astype(np.float64) > threshold)
    positions = above[above >= settings.min_anchor_position]
    return Anchors(mean, std, threshold, tuple(int(t) for t in positions))


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
    on_progress: Callable[[int], None] = lambda _: None,
) -> Iterator[dict[str, Any]]:
    """Yield rows of the table `roots`.

    roots: pairs of a root's id and its token ids. batch: roots scored at once. on_progress: called
    with the number of tokens of each forward pass.
    """
    pending: list[tuple[str, list[int]]] = []

    def flush() -> Iterator[dict[str, Any]]:
        requests = [root_request(ids, bos_ids) for _, ids in pending]
        for (root_id, ids), scores in zip(
            pending, scorer.score(requests, on_progress), strict=True
        ):
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
    anchors = find_anchors(entropies_T, settings)
    return {
        "root_id": root_id,
        "token_ids": token_ids,
        "entropies": _null_for_nan(entropies_T),
        "surprisals": _null_for_nan(surprisals_T),
        "mean": anchors.mean,
        "std": anchors.std,
        "threshold": anchors.threshold,
        "anchors": list(anchors.positions),
    }


def _null_for_nan(values_T: NDArray[np.float32]) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values_T]
