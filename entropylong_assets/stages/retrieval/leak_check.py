"""The built-in leak check: containment of word n-grams, the usual measure of copied text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING

from entropylong_assets.stages.retrieval.registry import LEAK_CHECKS
from entropylong_assets.stages.text_units import split_units

if TYPE_CHECKING:
    from entropylong_assets.stages.retrieval.settings import RetrievalSettings

PASSED, NEAR_DUPLICATE = "passed", "near_duplicate"
"""Results of a leak check, as stored in the column `leak_check`."""

MIN_BESIDE = 2
"""Words of an n-gram that must be unchanged on either side of an edited one."""

MAX_PLACES = 32
"""Maximum number of occurrences of half an n-gram in the root whose other half is compared: a half
that occurs more often is no evidence of a copy."""


def max_gap(word: str) -> int:
    """Return how many letters the root may have in place of an edited word of the chunk."""
    return 3 * (len(word) + 1)


@LEAK_CHECKS.register("word_ngrams")
class WordNgrams:
    """Share of the chunk's distinct n-grams of words that occur in the root.

    n is `retrieval.leak_ngram_words`; a chunk of fewer words is compared as one shorter n-gram.
    `split_units` says what a word is in which script. An n-gram occurs in the root if its letters
    do, whatever spaces are between them. An n-gram of n words also occurs if one of them that has
    `MIN_BESIDE` others on either side is changed, missing or extra, since a copy with a small edit
    in every sentence has few exact n-grams of its original.
    """

    def __init__(self, settings: RetrievalSettings, root_text: str) -> None:
        self._n = settings.leak_ngram_words
        self._root = root = "".join(split_units(root_text))
        self._reversed_root = root[::-1]
        # All strings of one length in the root: a set answers faster than a search of the root.
        self._windows = cache(lambda size: {root[i : i + size] for i in range(len(root))})

    def containment(self, chunk_text: str) -> float:
        units = split_units(chunk_text)
        n = min(self._n, len(units))
        if not n:
            return 0.0
        letters, ends = "".join(units), [0, *accumulate(map(len, units))]
        # Whichever word of an n-gram is edited, its first or its last half is unchanged.
        half = max(1, n // 2)
        halves = self._find_runs(letters, ends, half)
        if not halves:
            return 0.0
        occurring = set()
        for start in halves | {i - n + half for i in halves}:
            if 0 <= start <= len(units) - n:
                ngram = tuple(units[start : start + n])
                first, last = start in halves, start + n - half in halves
                if (first and last and letters[ends[start] : ends[start + n]] in self._root) or (
                    n == self._n and self._occurs_edited(ngram, first, last)
                ):
                    occurring.add(ngram)
        if not occurring:
            return 0.0
        return len(occurring) / len(set(zip(*(units[i:] for i in range(n)), strict=False)))

    def _find_runs(self, letters: str, ends: list[int], length: int) -> set[int]:
        """Return where `length` words start whose letters are in the root.

        letters: of all words of the chunk. ends: 0, and the end of each word in `letters`.
        """
        # A window is two words of an alphabet or three ideographs: rare in a root that lacks the
        # rest. Every run of more than two words includes one that is shorter by a word and starts
        # at an even one, which is half the look-ups.
        n_words = len(ends) - 1
        size = 3 * min(3, max(1, len(letters) // n_words))
        step = 2 if length > 2 else 1
        windows, root = self._windows(size), self._root
        runs = zip(ends[::step], ends[length - step + 1 :: step], strict=False)
        likely = [
            step * i
            for i, (start, end) in enumerate(runs)
            if end - start < size
            or (letters[start : start + size] in windows and letters[end - size : end] in windows)
        ]
        starts = {i - before for i in likely for before in range(step)}
        last = n_words - length
        strings = ((i, letters[ends[i] : ends[i + length]]) for i in starts if 0 <= i <= last)
        return {
            i for i, run in strings if (len(run) < size or run[-size:] in windows) and run in root
        }

    def _occurs_edited(self, ngram: tuple[str, ...], first: bool, last: bool) -> bool:
        """Return whether an n-gram is in the root, except for one word.

        first, last: whether its first and its last half are in the root.
        """
        half = len(ngram) // 2
        if first and _continues(self._root, ngram[:half], ngram[half:]):
            return True
        backwards = [word[::-1] for word in reversed(ngram)] if last else []
        return last and _continues(self._reversed_root, backwards[:half], backwards[half:])


def _continues(root: str, half: Sequence[str], rest: Sequence[str]) -> bool:
    """Return whether the root contains the words of `half`, then those of `rest` except for one.

    At least `MIN_BESIDE` words follow the one that may differ.
    """
    letters, ending = "".join(half), "".join(rest[-MIN_BESIDE:])
    reach = sum(len(word) + max_gap(word) for word in rest)
    at = root.find(letters)
    for _ in range(MAX_PLACES):
        if at < 0:
            return False
        following = root[at + len(letters) : at + len(letters) + reach]
        if ending in following:
            for i in range(len(rest) - MIN_BESIDE):
                between, after = "".join(rest[:i]), "".join(rest[i + 1 :])
                limit = len(between) + max_gap(rest[i]) + len(after)
                if (
                    following.startswith(between)
                    and following.find(after, len(between), limit) >= 0
                ):
                    return True
        at = root.find(letters, at + 1)
    return False
