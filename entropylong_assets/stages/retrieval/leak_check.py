"""The built-in leak check: containment of word n-grams, the usual measure of copied text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from entropylong_assets.stages.retrieval.registry import LEAK_CHECKS

if TYPE_CHECKING:
    from entropylong_assets.stages.retrieval.settings import RetrievalSettings

PASSED, NEAR_DUPLICATE = "passed", "near_duplicate"
"""Results of a leak check, as stored in the column `leak_check`."""

_WORD = re.compile(r"\w+")


def ngrams(words: list[str], n: int) -> frozenset[tuple[str, ...]]:
    """Return the distinct n-grams of words; of fewer than n words, all of them as one n-gram."""
    n = min(n, len(words))
    return frozenset(zip(*(words[i:] for i in range(n)), strict=False)) if n else frozenset()


@LEAK_CHECKS.register("word_ngrams")
class WordNgrams:
    """Share of the chunk's distinct n-grams of lower-cased words that occur in the root.

    n is `retrieval.leak_ngram_words`. A chunk of fewer words is compared as one shorter n-gram.
    """

    def __init__(self, settings: RetrievalSettings, root_text: str) -> None:
        self._n = settings.leak_ngram_words
        self._words = _WORD.findall(root_text.lower())
        self._ngrams: dict[int, frozenset[tuple[str, ...]]] = {}

    def containment(self, chunk_text: str) -> float:
        chunk_ngrams = ngrams(_WORD.findall(chunk_text.lower()), self._n)
        if not chunk_ngrams:
            return 0.0
        length = len(next(iter(chunk_ngrams)))
        return len(chunk_ngrams & self._ngrams_of_root(length)) / len(chunk_ngrams)

    def _ngrams_of_root(self, n: int) -> frozenset[tuple[str, ...]]:
        if n not in self._ngrams:
            enough = len(self._words) >= n
            self._ngrams[n] = ngrams(self._words, n) if enough else frozenset()
        return self._ngrams[n]
