"""Scores of a root's tokens given contexts, from keys and values that were computed once.

A context C stands before a root D: in the frame of the root, C has the positions -L .. -1 and D the
positions 0, 1, ... A rotary embedding sees distances only, so the keys and values of C are those of
any sequence [C; D], and the keys and values of D alone fit every C. Three scores of a token follow,
which differ in what is computed again:

- exact: all of D, with C before it. This is the plain definition.
- splice: a window of tokens before the scored one. It sees C, the root's kept keys before the
  window, which don't know of C, and itself.
- bare: a window of tokens before the scored one that follows C directly.

Overlapping windows of one context are merged into one, which begins where the first of them does.

Legend: T tokens, N scored positions of a segment, R of a pass, S segments, L tokens of a context.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from entropylong_assets.stages.entropy import attention
from entropylong_assets.stages.entropy.engine import PackedScorer
from entropylong_assets.stages.entropy.kept_keys import (
    Keeping,
    KeptKeys,
    Range,
    index_of,
)
from entropylong_assets.stages.entropy.kernels import entropy_and_surprisal, head_of
from entropylong_assets.stages.entropy.passes import LaunchedPass
from entropylong_assets.stages.entropy.rotary import PassLengths
from entropylong_assets.stages.entropy.scoring import PositionScores
from entropylong_assets.stages.entropy.splice_attention import Part, SplicedAttention

Kind = Literal["exact", "splice", "bare"]

WINDOWS: Mapping[Kind, int | None] = {"exact": None, "splice": 64, "bare": 128}
"""Tokens before a scored one that are computed again; None: all of the root."""

Tokens = NDArray[np.int64]

NOTHING = Range(0, 0)


@dataclass(frozen=True, eq=False)
class Segment:
    """Neighbouring tokens of a root that are computed given a context.

    tokens_T: own tokens. rows_N: those that predict the scored ones. targets_N: the scored tokens.
    position: of the first own token. context, root: kept tokens that it sees.
    """

    tokens_T: Tokens
    rows_N: Tokens
    targets_N: Tokens
    position: int
    context: Range
    root: Range

    @property
    def context_position(self) -> int:
        """Position of the first token of the context, whose last one may be an own token."""
        return min(self.position, 0) - self.context.tokens


def merge_windows(anchors: Sequence[int], width: int | None) -> list[tuple[int, list[int]]]:
    """Return windows as (first token, scored positions), ascending; overlapping ones are joined.

    anchors: positions in the root, ascending. A window that reaches the beginning of the root
    begins at -1, the last token of the context, which predicts the root's first token.
    """
    windows: list[tuple[int, list[int]]] = []
    for anchor in anchors:
        start = -1 if width is None or anchor <= width else anchor - width
        if windows and start <= windows[-1][1][-1]:
            windows[-1][1].append(anchor)
        else:
            windows.append((start, [anchor]))
    return windows


def segments_of(
    kind: Kind,
    context_L: Tokens,
    root_T: Tokens,
    anchors: Sequence[int],
    context: Range,
    root: Range,
    width: int | None = None,
) -> list[Segment]:
    """Return the segments of one root and context that score these anchors, in their order.

    context, root: where their kept keys and values are. width: of the windows; None: `WINDOWS`.
    """
    segments = []
    for start, scored in merge_windows(anchors, WINDOWS[kind] if width is None else width):
        scored_N = np.asarray(scored, np.int64)
        end, rows_N, targets_N = scored[-1], scored_N - 1 - start, root_T[scored_N]
        if start < 0:
            tokens_T = np.concatenate([context_L[-1:], root_T[:end]])
            shorter = Range(context.start, context.tokens - 1)
            segments.append(Segment(tokens_T, rows_N, targets_N, -1, shorter, NOTHING))
            continue
        position = 0 if kind == "bare" else start
        seen = NOTHING if kind == "bare" else Range(root.start, start)
        segments.append(Segment(root_T[start:end], rows_N, targets_N, position, context, seen))
    return segments


class SplicedScorer:
    """Keeps keys and values of sequences, and scores segments that see them, on an engine."""

    def __init__(self, scorer: PackedScorer) -> None:
        self._scorer = scorer

    def keep(
        self,
        sequences: Sequence[Tokens],
        firsts: Sequence[int],
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> KeptKeys:
        """Return keys and values of sequences whose first tokens have these positions.

        on_progress: called with the number of tokens of each forward pass.
        """
        kept, scorer = KeptKeys([len(tokens_T) for tokens_T in sequences]), self._scorer

        def launch(numbers: list[int]) -> LaunchedPass:
            lengths = [len(sequences[i]) for i in numbers]
            tokens_T = np.concatenate([sequences[i] for i in numbers])
            positions_T = np.concatenate(
                [firsts[i] + np.arange(n) for i, n in zip(numbers, lengths, strict=True)]
            )
            with torch.inference_mode():
                at_T = scorer.tensor(index_of(kept, numbers))
                with attention.attending(Keeping(kept, at_T)):
                    self._hidden(tokens_T, positions_T, lengths, np.zeros(2, np.int64))
                return LaunchedPass.of_scores([])

        for _ in scorer.run(kept.lengths, launch, on_progress):
            pass
        return kept

    def score(
        self,
        segments: Sequence[Segment],
        contexts: KeptKeys,
        roots: KeptKeys,
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> list[PositionScores]:
        """Return scores in the order of the segments.

        contexts, roots: kept keys and values that the segments see.
        """

        def launch(numbers: list[int]) -> LaunchedPass:
            chosen = [segments[i] for i in numbers]
            lengths = [len(s.tokens_T) for s in chosen]
            borders_S = np.cumsum([0, *lengths])
            spliced = SplicedAttention(
                borders_S.tolist(),
                [s.position for s in chosen],
                [
                    Part(
                        contexts, [s.context for s in chosen], [s.context_position for s in chosen]
                    ),
                    Part(roots, [s.root for s in chosen], [0 for _ in chosen]),
                ],
            )
            tokens_T = np.concatenate([s.tokens_T for s in chosen])
            positions_T = np.concatenate([s.position + np.arange(len(s.tokens_T)) for s in chosen])
            rows_R = np.concatenate(
                [s.rows_N + at for s, at in zip(chosen, borders_S, strict=False)]
            )
            targets_R = self._scorer.tensor(np.concatenate([s.targets_N for s in chosen]))
            with torch.inference_mode(), attention.attending(spliced):
                hidden_RD = self._hidden(tokens_T, positions_T, lengths, rows_R)
                head = head_of(self._scorer.hf_model)
                both_2R = torch.stack(entropy_and_surprisal(hidden_RD, targets_R, head))
            return LaunchedPass(both_2R, [len(s.rows_N) for s in chosen])

        scores: dict[int, PositionScores] = {}
        for numbers, parts in self._scorer.run(
            [len(s.tokens_T) for s in segments], launch, on_progress
        ):
            scores |= dict(zip(numbers, parts, strict=True))
        return [scores[number] for number in range(len(segments))]

    def _hidden(
        self, tokens_T: Tokens, positions_T: Tokens, lengths: list[int], rows_R: Tokens
    ) -> torch.Tensor:
        tensor = self._scorer.tensor
        borders_S = np.cumsum([0, *lengths]).astype(np.int32)
        return self._scorer.trunk.hidden_packed(
            tensor(tokens_T)[None],
            tensor(positions_T)[None],
            tensor(borders_S),
            PassLengths(lengths, lengths),
            tensor(rows_R),
        )
