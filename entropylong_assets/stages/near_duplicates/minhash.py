"""Shingles of a document, their MinHash signature, and how many bands a threshold needs.

A shingle is `n` adjacent words, in the platform's own segmentation (`text_units`), so that texts of
scripts without spaces have shingles too. The signature of a document is the smallest hash of its
shingles under each of 128 permutations: two documents agree in a share of the positions that
estimates the Jaccard similarity of their sets of shingles (Broder, 1997).

The hashes are stored and compared over months, so they depend on nothing but the text: not on a
library's version, the process or the machine. A 32-bit hash per permutation costs 25 µs per
document of 200 words in NumPy, a sixth of the cost of splitting a text into words and hashing them.

Legend: D documents, H hashes of shingles of all documents, P permutations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from entropylong_assets.stages.ngrams import combine, distinct, hash_ngrams, mix
from entropylong_assets.stages.text_units import split_units

PERMUTATIONS = 128

MAX_MISS = 0.02
"""Maximum probability that a pair exactly at the threshold shares no band."""

_SEED = 20251002
_ODD = np.random.default_rng(_SEED).integers(0, 2**31, PERMUTATIONS, np.uint32) * np.uint32(
    2
) + np.uint32(1)
_SHIFT = np.random.default_rng(_SEED + 1).integers(0, 2**32, PERMUTATIONS, np.uint32)
_BLOCK = 2**18
"""Shingles hashed under all permutations at once, so that memory stays small."""


def shingles(text: str, n_words: int) -> NDArray[np.uint64]:
    """Return the distinct hashes of a text's shingles, sorted. A shorter text is one shingle."""
    return distinct(hash_ngrams(split_units(text), n_words))


def signatures(hashes: Sequence[NDArray[np.uint64]]) -> NDArray[np.uint32]:
    """Return the signature of each set of shingles, uint32 [D, P]. No set may be empty."""
    result_DP = np.empty((len(hashes), PERMUTATIONS), np.uint32)
    first = 0
    while first < len(hashes):
        last, size = first, 0
        while last < len(hashes) and (not size or size + len(hashes[last]) <= _BLOCK):
            size, last = size + len(hashes[last]), last + 1
        lengths_D = [len(h) for h in hashes[first:last]]
        starts_D = np.cumsum([0, *lengths_D[:-1]])
        upper_H = (np.concatenate(hashes[first:last]) >> np.uint64(32)).astype(np.uint32)
        for p in range(PERMUTATIONS):
            permuted_H = upper_H * _ODD[p] + _SHIFT[p]
            result_DP[first:last, p] = np.minimum.reduceat(permuted_H, starts_D)
        first = last
    return result_DP


def choose_bands(threshold: float) -> tuple[int, int]:
    """Return the number of bands, and rows per band, for a threshold.

    The longest bands with which a pair exactly at the threshold is missed with probability
    `MAX_MISS` at most: a pair of Jaccard similarity J shares a band of r rows with probability J^r,
    and at least one of b bands with 1 - (1 - J^r)^b. At a threshold of 0.7 these are 25 bands of 5
    rows, which miss 1.0% of the pairs at 0.7, 0.005% of those at 0.8, and nominate one pair in 400
    million of those at 0.01.
    """
    for rows in range(PERMUTATIONS // 2, 1, -1):
        bands = PERMUTATIONS // rows
        if (1 - threshold**rows) ** bands <= MAX_MISS:
            return bands, rows
    return PERMUTATIONS, 1


def band_keys(signatures_DP: NDArray[np.uint32], bands: int, rows: int) -> NDArray[np.uint64]:
    """Return a hash of each band of each signature, uint64 [bands, D]."""
    keys = np.empty((bands, len(signatures_DP)), np.uint64)
    for band in range(bands):
        key_D = np.full(len(signatures_DP), band, np.uint64)
        for row in range(band * rows, (band + 1) * rows):
            key_D = mix(combine(key_D, signatures_DP[:, row].astype(np.uint64)))
        keys[band] = key_D
    return keys
