"""Forward passes of the engine: concatenated sequences and their scores.

Legend: T tokens of a pack, S sequences, R scored positions of a pack.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from entropylong_assets.stages.entropy.scoring import PositionScores, ScoringRequest

if TYPE_CHECKING:
    from torch import Tensor


class LaunchedPass:
    """A forward pass that was started; its scores may still be on the device."""

    def __init__(self, both_2R: Tensor, counts: Sequence[int]) -> None:
        """both_2R: entropies and surprisals, float32. counts: scored positions per request."""
        self._counts = counts
        self._ready: list[PositionScores] | None = None
        self._host_2R, self._copied = both_2R, None
        if both_2R.is_cuda:
            self._host_2R = torch.empty(both_2R.shape, dtype=both_2R.dtype, pin_memory=True)
            self._host_2R.copy_(both_2R, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    @classmethod
    def of_scores(cls, scores: list[PositionScores]) -> LaunchedPass:
        launched = cls(torch.empty(2, 0), [])
        launched._ready = scores
        return launched

    def scores(self) -> list[PositionScores]:
        """Wait for the device and return the scores per request."""
        if self._ready is not None:
            return self._ready
        if self._copied is not None:
            self._copied.synchronize()
        entropy_R, surprisal_R = self._host_2R.numpy().copy()
        ends = np.cumsum([0, *self._counts])
        return [PositionScores(entropy_R[a:b], surprisal_R[a:b]) for a, b in pairwise(ends)]


class ConcatenatedSequences(NamedTuple):
    """Sequences one after the other, each up to its last scored position."""

    tokens_T: np.ndarray
    positions_T: np.ndarray
    """Position of each token in its own sequence."""
    borders_S: np.ndarray
    """Start of each sequence, and the end of the last."""
    rows_R: np.ndarray
    """Row of the pack that predicts each scored position: the one before it."""
    targets_R: np.ndarray
    """The true token at each scored position."""


def concatenate(requests: Sequence[ScoringRequest]) -> ConcatenatedSequences:
    """Concatenate the sequences of requests, none of which is without positions."""
    lengths = [int(r.positions_N[-1]) for r in requests]
    borders_S = np.cumsum([0, *lengths])
    return ConcatenatedSequences(
        tokens_T=np.concatenate(
            [r.token_ids_T[:n] for r, n in zip(requests, lengths, strict=True)]
        ),
        positions_T=np.concatenate([np.arange(n) for n in lengths]),
        borders_S=borders_S,
        rows_R=np.concatenate(
            [r.positions_N - 1 + start for r, start in zip(requests, borders_S, strict=False)]
        ),
        targets_R=np.concatenate([r.token_ids_T[r.positions_N] for r in requests]),
    )
