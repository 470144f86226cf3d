"""Which tokens of a natural long document need its far context.

Two views. By the text alone: how far back the pair of a token and the token before it last
occurred. By a model: LongPPL's key tokens (Fang et al., arXiv 2410.23771), whose loss falls by more
than 2 nats from a short to the long context and is then under 2 nats.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from entropylong_assets.audits.trial.folder import Rows
from entropylong_assets.stages.entropy.key_tokens import is_key_token

EDGES = (512, 2048, 4096, 8192)
"""Lower bounds of the groups by distance (tokens); the first group is nearer than all."""


def pair_distances(token_ids_T: NDArray[Any]) -> NDArray[np.int64]:
    """Distance from each token to where it last followed the same token; 0 if it never did."""
    ids = token_ids_T.astype(np.int64)
    keys = ids[:-1] << 32 | ids[1:]
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    distances = np.zeros(len(ids), np.int64)
    distances[order[1:][same] + 1] = np.diff(order)[same]
    return distances


def distance_groups(rows: Rows) -> dict[str, NDArray[np.bool_]]:
    """By name of a group: whether each token belongs to it, [rows, T]. Without padding."""
    ids_NT = rows.token_ids_NT
    real = np.arange(ids_NT.shape[1])[None] < rows.lengths_N[:, None]
    distances = np.stack([pair_distances(ids_T) for ids_T in ids_NT])
    groups = {"all": real, "never_before": real & (distances == 0)}
    for low, high in zip((1, *EDGES), (*EDGES, ids_NT.shape[1] + 1), strict=True):
        mask = real & (low <= distances) & (distances < high)
        if mask.any():
            groups[f"from_{low}"] = mask
    return groups


def key_tokens(
    short: NDArray[np.float32], long: NDArray[np.float32], window: int
) -> NDArray[np.bool_]:
    """LongPPL's key tokens, among those with at least 2·`window` tokens before them.

    short, long: losses given the short and the long context, [rows, T].
    """
    mask = is_key_token(short, long)
    mask[:, : 2 * window] = False
    return mask
