"""Hashes of n-grams that depend on the words or tokens alone, in any process and version."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_PRIME = np.uint64(0x9E3779B97F4A7C15)


@functools.lru_cache(2**17)
def _hash_word(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return a bijection of 64-bit values that spreads every bit (the finalizer of MurmurHash3)."""
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))


def combine(values: NDArray[np.uint64], other: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return hashes of pairs of values."""
    return values * _PRIME + other


def distinct(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the distinct values, sorted.

    As `numpy.unique`, which since numpy 2.3 puts them into a hash table first: that takes 6 times
    as long for 1,000 values and 100 times for a million.
    """
    ordered = np.sort(hashes)
    return ordered[np.concatenate([ordered[:1] == ordered[:1], ordered[1:] != ordered[:-1]])]


def hash_ngrams(words: Sequence[str], n: int) -> NDArray[np.uint64]:
    """Return the hash of each n-gram, in order. Fewer than n words are one shorter n-gram."""
    if not words:
        return np.zeros(0, np.uint64)
    hashes = np.fromiter(map(_hash_word, words), np.uint64, len(words))
    return hash_runs(hashes, min(n, len(words)))


def hash_runs(values: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """Return the hash of each run of n values, in order; none for fewer than n values."""
    count = max(0, len(values) - n + 1)
    combined = np.full(count, n, np.uint64)
    for i in range(n):
        combined = combine(combined, values[i : count + i])
    return mix(combined)
