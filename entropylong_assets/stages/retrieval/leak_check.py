"""Refuses candidates that would lower the entropy by copying the root.

A chunk of the root itself, or of a near-duplicate of its document, resolves every uncertainty
and teaches nothing. The paper does not say how it keeps these out; containment of word n-grams is
the usual measure of copied text.
"""

from __future__ import annotations

import re

_WORD = re.compile(r"\w+")


def word_ngrams(text: str, n: int) -> frozenset[tuple[str, ...]]:
    """n-grams of lower-cased words; a text of fewer words is one shorter n-gram."""
    words = _WORD.findall(text.lower())
    n = min(n, len(words))
    return frozenset(zip(*(words[i:] for i in range(n)), strict=False)) if n else frozenset()


def containment(chunk: str, root_text: str, n: int) -> float:
    """Share of the chunk's distinct word n-grams that stand in the root, in 0 .. 1."""
    return RootGuard(root_text, n).containment(chunk)


class RootGuard:
    """The n-grams of one root, against which many chunks are held."""

    def __init__(self, root_text: str, n: int) -> None:
        self._n = n
        self._words = _WORD.findall(root_text.lower())
        self._ngrams: dict[int, frozenset[tuple[str, ...]]] = {}

    def _of_length(self, n: int) -> frozenset[tuple[str, ...]]:
        if n not in self._ngrams:
            self._ngrams[n] = frozenset(zip(*(self._words[i:] for i in range(n)), strict=False))
        return self._ngrams[n]

    def containment(self, chunk: str) -> float:
        ngrams = word_ngrams(chunk, self._n)
        if not ngrams:
            return 0.0
        root_ngrams = self._of_length(len(next(iter(ngrams))))
        return len(ngrams & root_ngrams) / len(ngrams)
