"""Long-range evidence of a window: which tokens need distant text, and where that text is.

Legend: T tokens of a window.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from entropylong_assets.stages.entropy.key_tokens import is_key_token
from entropylong_assets.stages.natural_documents.windows import WindowScores

LONGEST_NGRAM = 64
"""Maximum length of an n-gram that is compared (tokens)."""


def information_gain(scores: WindowScores) -> float:
    """Mean of exp(-L_long)·(L_short - L_long) over the scored tokens (LongFilter, nats)."""
    long_T, short_T = scores.long_T.astype(np.float64), scores.short_T.astype(np.float64)
    return float(np.nanmean(np.exp(-long_T) * (short_T - long_T)))


def gzip_ratio(text: str) -> float:
    """Compressed by uncompressed bytes of the text in UTF-8 (zlib, level 6)."""
    data = text.encode()
    return len(zlib.compress(data, 6)) / len(data)


class Occurrence(NamedTuple):
    """An n-gram that ends at `end` (inclusive)."""

    end: int
    n_tokens: int


def find_earlier(
    token_ids_T: NDArray[np.int64], position: int, first: int, before: int
) -> Occurrence | None:
    """Find an earlier occurrence of the longest possible n-gram that ends at `position`.

    The whole occurrence is within [first, before); of several, the nearest is returned. None if not
    even the token itself occurs there. n-grams have at most `LONGEST_NGRAM` tokens.
    """
    ends = first + np.flatnonzero(token_ids_T[first:before] == token_ids_T[position])
    if not len(ends):
        return None
    n = 1
    while n < LONGEST_NGRAM and position - n >= 0:
        longer = ends[ends - n >= first]
        longer = longer[token_ids_T[longer - n] == token_ids_T[position - n]]
        if not len(longer):
            break
        ends, n = longer, n + 1
    return Occurrence(int(ends[-1]), n)


def key_positions(scores: WindowScores) -> NDArray[np.int64]:
    """Tokens whose surprisal falls by more than 2 nats, to less than 2 nats, in the long window."""
    return np.flatnonzero(is_key_token(scores.short_T, scores.long_T))


def evidence_rows(
    window_id: str, token_ids_T: NDArray[np.int64], scores: WindowScores, offset: int
) -> Iterator[dict[str, Any]]:
    """Rows of the table `evidence`. offset: special tokens before the window in its sample."""
    for position in key_positions(scores).tolist():
        first, before = int(scores.long_start_T[position]), int(scores.short_start_T[position])
        occurrence = find_earlier(token_ids_T, position, first, before)
        yield {
            "window_id": window_id,
            "position": position + offset,
            "surprisal_long": float(scores.long_T[position]),
            "surprisal_short": float(scores.short_T[position]),
            "short_start": before + offset,
            "found_at": None if occurrence is None else occurrence.end + offset,
            "ngram_tokens": None if occurrence is None else occurrence.n_tokens,
        }
