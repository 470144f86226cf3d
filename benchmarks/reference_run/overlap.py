"""Finds held-out texts that repeat runs of words of the training texts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from entropylong_assets.stages.ngrams import distinct, hash_ngrams

NGRAM = 13
"""Words of an n-gram, as in the decontamination of GPT-3 (arXiv 2005.14165, appendix C)."""

RUN = 50
"""A run of at least this many words, all n-grams of which are in training, is an overlap."""

_WORD = re.compile(r"\w+")


def _hashes(text: str) -> np.ndarray:
    """Return one uint64 per n-gram of words, in the order of the text; none for fewer words."""
    words = _WORD.findall(text.lower())
    return hash_ngrams(words if len(words) >= NGRAM else [], NGRAM)


def longest_runs(heldout: Sequence[str], train: Iterable[str]) -> list[int]:
    """Return, per held-out text, the words of its longest run that training repeats.

    A run counts if each of its n-grams of NGRAM words is somewhere in the training texts. Words
    are compared without case and punctuation.
    """
    mine = [_hashes(text) for text in heldout]
    wanted = distinct(np.concatenate([np.zeros(0, np.uint64), *mine]))
    seen = np.zeros(len(wanted), bool)
    for text in train:
        hashes = _hashes(text)
        if len(wanted) and len(hashes):
            places = np.minimum(np.searchsorted(wanted, hashes), len(wanted) - 1)
            seen[places[wanted[places] == hashes]] = True
    return [_longest(seen[np.searchsorted(wanted, hashes)]) for hashes in mine]


def _longest(repeated: np.ndarray) -> int:
    """Return the words of the longest run of True n-grams: that many, and NGRAM - 1."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], repeated.astype(np.int8), [0]])))
    lengths = edges[1::2] - edges[::2]
    return int(lengths.max()) + NGRAM - 1 if len(lengths) else 0
