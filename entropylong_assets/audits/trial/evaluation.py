"""Scores of a model: answers of synthetic tasks, natural long documents, short documents.

Every score is of one forward pass per row: answers are judged under teacher forcing, so nothing is
generated. Values are kept per item and per document, so that runs can be compared pairwise.

Legend: B rows of a pass, T tokens of a row, A tokens of all answers in a pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from entropylong_assets.audits.trial.folder import Items, Rows
from entropylong_assets.audits.trial.network import Network, shift

PASS_TOKENS = 131_072
"""Tokens per forward pass, at least one row."""


def _passes(rows: int, tokens: int) -> Iterator[slice]:
    size = max(1, PASS_TOKENS // tokens)
    for start in range(0, rows, size):
        yield slice(start, start + size)


def _ids(array: NDArray[Any], network: Network) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int64)).to(network.device)


@torch.no_grad()
def score_items(network: Network, items: Items) -> dict[str, list[float]]:
    """By item: `log_likelihood`, the mean over the answer's tokens (nats), and `exact`, 1 if every
    token of the answer is the likeliest given the true ones before it, else 0.
    """
    network.hf_model.eval()
    means: list[float] = []
    exact: list[float] = []
    for part in _passes(*items.token_ids_NT.shape):
        ids_BT = _ids(items.token_ids_NT[part], network)
        starts_B, ends_B = (_ids(array[part], network) for array in (items.start_N, items.end_N))
        places = torch.arange(ids_BT.shape[1], device=network.device)[None]
        # Token t is predicted at t - 1.
        wanted_BT = (places >= starts_B[:, None] - 1) & (places < ends_B[:, None] - 1)
        logits_AV = network.logits(network.hidden(ids_BT)[wanted_BT], exact=True)
        answers_A = ids_BT.roll(-1, dims=1)[wanted_BT]
        log_p_A = torch.log_softmax(logits_AV, -1).gather(1, answers_A[:, None])[:, 0]
        right_A = (logits_AV.argmax(-1) == answers_A).float()
        rows_A = wanted_BT.nonzero()[:, 0]
        counts_B = (ends_B - starts_B).float()
        for values_A, out in ((log_p_A, means), (right_A, exact)):
            sums_B = torch.zeros_like(counts_B).index_add_(0, rows_A, values_A)
            out.extend((sums_B / counts_B).tolist())
    return {"log_likelihood": means, "exact": [float(share > 1 - 1e-6) for share in exact]}


@torch.no_grad()
def token_losses(network: Network, rows: Rows) -> NDArray[np.float32]:
    """Loss of every token (nats), [rows, T]; NaN for the first one and for padding."""
    network.hf_model.eval()
    out = np.full(rows.token_ids_NT.shape, np.nan, np.float32)
    for part in _passes(*rows.token_ids_NT.shape):
        ids_BT = _ids(rows.token_ids_NT[part], network)
        targets_BT = shift(ids_BT, _ids(rows.lengths_N[part], network))
        hidden_ND = network.hidden(ids_BT).flatten(0, 1)
        losses_BT = network.losses(hidden_ND, targets_BT.flatten(), exact=True).view(ids_BT.shape)
        losses_BT = losses_BT.masked_fill(targets_BT < 0, float("nan"))
        out[part, 1:] = losses_BT[:, :-1].cpu().numpy()
    return out


def short_window_losses(network: Network, rows: Rows, window: int) -> NDArray[np.float32]:
    """Loss of every token given between `window` and 2·`window` - 1 tokens before it (fewer at the
    beginning of a row), [rows, T].

    Rows are cut into pieces of 2·`window` tokens, each of which begins in the middle of the one
    before.
    """
    count, tokens = rows.token_ids_NT.shape
    starts = list(range(0, max(1, tokens - window), window))
    pieces, lengths = [], []
    for start in starts:
        piece = rows.token_ids_NT[:, start : start + 2 * window]
        pieces.append(np.pad(piece, ((0, 0), (0, 2 * window - piece.shape[1]))))
        lengths.append(np.clip(rows.lengths_N - start, 0, piece.shape[1]))
    losses = token_losses(network, Rows(np.concatenate(pieces), np.concatenate(lengths)))
    out = np.full((count, tokens), np.nan, np.float32)
    for number, start in enumerate(starts):
        own = losses[number * count : (number + 1) * count]
        begin = window if start else 0
        end = min(2 * window, tokens - start)
        out[:, start + begin : start + end] = own[:, begin:end]
    return out


def means_by_row(
    losses: NDArray[np.float32], groups: Mapping[str, NDArray[np.bool_]]
) -> dict[str, list[float | None]]:
    """Mean loss of each row over each group of its tokens; None for a row without such tokens."""
    found: dict[str, list[float | None]] = {}
    for name, mask in groups.items():
        used = mask & ~np.isnan(losses)
        sums, counts = np.where(used, losses, 0).sum(1, dtype=np.float64), used.sum(1)
        found[name] = [
            float(total / n) if n else None for total, n in zip(sums, counts, strict=True)
        ]
    return found
