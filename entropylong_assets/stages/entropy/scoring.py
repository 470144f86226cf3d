"""Requests to a scoring model, and the scores that it returns.

Legend: T tokens of a sequence, N scored positions, V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class ScoringRequest:
    """A sequence and the positions in it to score.

    token_ids_T: int64 [T], including special tokens. positions_N: int64 [N], ascending, each in
    1 .. T-1: position t is scored from the logits at t-1.
    """

    token_ids_T: NDArray[np.int64]
    positions_N: NDArray[np.int64]

    def __post_init__(self) -> None:
        positions, length = self.positions_N, len(self.token_ids_T)
        assert np.all(np.diff(positions) > 0), "positions must ascend"
        assert len(positions) == 0 or (positions[0] >= 1 and positions[-1] < length)


@dataclass(frozen=True, eq=False)
class PositionScores:
    """entropy_N: H = -Σ p ln p, surprisal_N: -ln p(true token); float32 [N], nats."""

    entropy_N: NDArray[np.float32]
    surprisal_N: NDArray[np.float32]


def join_scores(parts: Sequence[PositionScores]) -> PositionScores:
    """Concatenate the scores of consecutive positions."""
    return PositionScores(
        np.concatenate([part.entropy_N for part in parts]),
        np.concatenate([part.surprisal_N for part in parts]),
    )


class Scorer(Protocol):
    """Scores requests: the plain model, or a faster engine with the same interface."""

    def score(
        self,
        requests: Sequence[ScoringRequest],
        on_progress: Callable[[int], None] = ...,
    ) -> list[PositionScores]:
        """Return scores in the order of the requests.

        on_progress: called with the number of tokens of each forward pass.
        """
        ...
