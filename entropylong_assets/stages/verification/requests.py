"""Requests for the forward passes of a root: [C; D] for every distinct candidate and control.

Anchors of a root that nominate the same chunk share one pass, and D is cut after the last of them.
Causal attention makes both exact.

Legend: T tokens of a sequence, N anchors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from entropylong_assets.stages.entropy.scoring import ScoringRequest


def context_request(
    bos_ids: Sequence[int],
    context_ids: Sequence[int],
    root_ids: Sequence[int],
    anchors: Sequence[int],
) -> ScoringRequest:
    """Return [BOS?; C; D], with D cut after the last anchor, to be scored at the anchors.

    context_ids: ends with the separator's tokens, as in a sample. anchors: positions in the root,
    in any order, without repeats.
    """
    ordered = sorted(anchors)
    before = len(bos_ids) + len(context_ids)
    tokens = [*bos_ids, *context_ids, *root_ids[: ordered[-1] + 1]]
    return ScoringRequest(
        np.asarray(tokens, np.int64), np.asarray([before + t for t in ordered], np.int64)
    )


def fits(
    bos_ids: Sequence[int], context_ids: Sequence[int], last_anchor: int, max_positions: int
) -> bool:
    """Return whether context and root up to the last anchor fit into the model's positions."""
    return len(bos_ids) + len(context_ids) + last_anchor + 1 <= max_positions
