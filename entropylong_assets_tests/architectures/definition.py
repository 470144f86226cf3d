"""The plain definition of a score, written independently: the oracle of the engine's modes.

One sequence per forward pass, each with a new copy of the model; entropies in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from entropylong_assets.stages.entropy.scoring import PositionScores, ScoringRequest


def defined_scores(fresh: Any, request: ScoringRequest) -> PositionScores:
    """fresh: a model of transformers that has not computed anything; it is not changed."""
    hf_model = copy.deepcopy(fresh)
    ids = torch.from_numpy(request.token_ids_T)
    with torch.no_grad():
        logits = hf_model(input_ids=ids[None], use_cache=False).logits[0].double()
    log_p = torch.log_softmax(logits[request.positions_N - 1], -1)
    entropy = torch.special.entr(log_p.exp()).sum(-1)
    surprisal = -log_p.gather(1, ids[request.positions_N][:, None])[:, 0]
    return PositionScores(entropy.float().numpy(), surprisal.float().numpy())


def largest_difference(a: Sequence[PositionScores], b: Sequence[PositionScores]) -> float:
    """Largest absolute difference of any score (nats)."""
    assert len(a) == len(b) > 0
    both = [(x.entropy_N, y.entropy_N) for x, y in zip(a, b, strict=True)]
    both += [(x.surprisal_N, y.surprisal_N) for x, y in zip(a, b, strict=True)]
    assert all(len(x) == len(y) > 0 for x, y in both)
    return max(float(np.abs(x - y).max()) for x, y in both)


def requests_of_lengths(lengths: Sequence[int], seed: int = 0) -> list[ScoringRequest]:
    """Random sequences, each scored at some positions that end before the sequence does."""
    draw = np.random.default_rng(seed)
    requests = []
    for length in lengths:
        last = int(draw.integers(max(2, length // 4), length))
        positions = np.unique(draw.integers(1, last + 1, 20))
        requests.append(ScoringRequest(draw.integers(3, 290, length), positions))
    return requests
