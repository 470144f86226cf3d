"""Comparison of an engine with the plain definition, on the loaded model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from entropylong_assets.stages.entropy.model import ScoringModel
from entropylong_assets.stages.entropy.scoring import PositionScores, ScoringRequest


def probe_requests(model: ScoringModel, longest: int) -> list[ScoringRequest]:
    """Return two short sequences of random tokens, the same in every run, with all positions."""
    draw = np.random.default_rng(0)
    longest = min(longest, model.max_positions)
    return [
        ScoringRequest(draw.integers(0, model.vocab_size, n), np.arange(1, n, dtype=np.int64))
        for n in (longest, max(2, longest // 2))
    ]


def _differences(a: Sequence[PositionScores], b: Sequence[PositionScores]) -> np.ndarray:
    pairs = [(x.entropy_N, y.entropy_N) for x, y in zip(a, b, strict=True)]
    pairs += [(x.surprisal_N, y.surprisal_N) for x, y in zip(a, b, strict=True)]
    return np.concatenate([np.abs(x - y) for x, y in pairs])


def largest_difference(a: Sequence[PositionScores], b: Sequence[PositionScores]) -> float:
    """Return the largest absolute difference of any entropy or surprisal (nats)."""
    return float(_differences(a, b).max(initial=0.0))


def mean_difference(a: Sequence[PositionScores], b: Sequence[PositionScores]) -> float:
    """Return the mean absolute difference of all entropies and surprisals (nats)."""
    return float(_differences(a, b).mean())
