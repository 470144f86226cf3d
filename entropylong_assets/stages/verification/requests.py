"""Requests for the forward passes of a root: [C; D] for every distinct candidate and control.

Anchors of a root that nominate the same chunk share one request. Its sequence is the whole [C; D],
as far as the model can read: some models choose their rotary factors by the length of the sequence,
and a score must not depend on which other anchors are scored. The engine ends its pass at the last
anchor all the same.

Legend: T tokens of a sequence, L of its context, N anchors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from entropylong_assets.stages.entropy.scoring import PositionScores, ScoringRequest


@dataclass(frozen=True, eq=False)
class ContextRequest(ScoringRequest):
    """A request for a root given a context, which the engine scores like any other.

    context_tokens: tokens before the root, BOS included.
    """

    context_tokens: int

    @property
    def context_ids(self) -> NDArray[np.int64]:
        """Token ids of the context, BOS included; int64 [L]."""
        return self.token_ids_T[: self.context_tokens]

    @property
    def root_ids(self) -> NDArray[np.int64]:
        """Token ids of the root, up to the model's maximum length; int64 [T]."""
        return self.token_ids_T[self.context_tokens :]

    @property
    def anchors(self) -> NDArray[np.int64]:
        """Scored positions in the root; int64 [N]."""
        return self.positions_N - self.context_tokens


def pass_tokens(request: ScoringRequest) -> int:
    """Return the tokens of the forward pass, which ends with the last scored position."""
    return int(request.positions_N[-1])


def is_known(request: ScoringRequest, score: PositionScores | None) -> bool:
    """Return whether a score has all positions of a request."""
    return score is not None and len(score.entropy_N) == len(request.positions_N)


def longest_roots(
    requests: Mapping[tuple[str, str], ContextRequest],
) -> dict[str, NDArray[np.int64]]:
    """Return the token ids of each root, int64 [T], by its id; requests: by (root, chunk).

    Requests may cut a root to the model's length differently: the longest counts.
    """
    roots: dict[str, NDArray[np.int64]] = {}
    for (root_id, _), request in requests.items():
        if root_id not in roots or len(request.root_ids) > len(roots[root_id]):
            roots[root_id] = request.root_ids
    return roots


def context_request(
    bos_ids: Sequence[int],
    context_ids: Sequence[int],
    root_ids: Sequence[int],
    anchors: Sequence[int],
    max_positions: int,
) -> ContextRequest:
    """Return the first `max_positions` tokens of [BOS?; C; D], to be scored at the anchors.

    context_ids: ends with the separator's tokens, as in a sample. anchors: positions in the root
    that fit (`fits`), in any order, without repeats.
    """
    ordered = sorted(anchors)
    before = len(bos_ids) + len(context_ids)
    tokens = [*bos_ids, *context_ids, *root_ids[: max(0, max_positions - before)]]
    return ContextRequest(
        np.asarray(tokens, np.int64), np.asarray([before + t for t in ordered], np.int64), before
    )


def fits(
    bos_ids: Sequence[int], context_ids: Sequence[int], last_anchor: int, max_positions: int
) -> bool:
    """Return whether context and root up to the last anchor fit into the model's positions."""
    return len(bos_ids) + len(context_ids) + last_anchor + 1 <= max_positions
