"""Finds held-out texts that repeat runs of words of the training texts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

NGRAM = 13
"""Words of an n-gram, as in the decontamination of GPT-3 (arXiv 2005.14165, appendix C)."""

RUN = 50
"""A run of at least this many words, all n-grams of which are in training, is an overlap."""

_WORD = re.compile(r"\w+")


class _Hasher:
    """Hashes all n-grams of a text to uint64; a word's value depends on the order of first use."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}
        self.values = np.zeros(0, np.uint64)

    def hashes(self, text: str) -> np.ndarray:
        """Return one uint64 per n-gram, in the order of the text."""
        ids = [self.ids.setdefault(w, len(self.ids)) for w in _WORD.findall(text.lower())]
        if len(ids) < NGRAM:
            return np.zeros(0, np.uint64)
        if len(self.ids) > len(self.values):  # a seed per size gives new words new values
            more = np.random.default_rng(len(self.values)).integers(
                1, 2**63, len(self.ids) * 2 - len(self.values), dtype=np.uint64
            )
            self.values = np.concatenate([self.values, more])
        values = self.values[ids]
        count = len(ids) - NGRAM + 1
        result = np.zeros(count, np.uint64)
        for i in range(NGRAM):
            result = result * np.uint64(0x9E3779B97F4A7C15) + values[i : i + count]
        return result


def longest_runs(heldout: Sequence[str], train: Iterable[str]) -> list[int]:
    """Return, per held-out text, the words of its longest run that training repeats.

    A run counts if each of its n-grams of NGRAM words is somewhere in the training texts. Words
    are compared without case and punctuation.
    """
    hasher = _Hasher()
    mine = [hasher.hashes(text) for text in heldout]
    wanted = np.unique(np.concatenate([np.zeros(0, np.uint64), *mine]))
    seen = np.zeros(len(wanted), bool)
    for text in train:
        hashes = hasher.hashes(text)
        if len(wanted) and len(hashes):
            places = np.minimum(np.searchsorted(wanted, hashes), len(wanted) - 1)
            seen[places[wanted[places] == hashes]] = True
    return [_longest(seen[np.searchsorted(wanted, hashes)]) for hashes in mine]


def _longest(repeated: np.ndarray) -> int:
    """Return the words of the longest run of True n-grams: that many, and NGRAM - 1."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], repeated.astype(np.int8), [0]])))
    lengths = edges[1::2] - edges[::2]
    return int(lengths.max()) + NGRAM - 1 if len(lengths) else 0
