"""BM25 by its textbook formula (Robertson and Zaragoza 2009), over lists of words; an oracle."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

K1, B = 1.2, 0.75


def bm25(query: Sequence[str], documents: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Scores of the documents that have a word of the query, by their ids. A word of the query
    counts as often as it occurs there."""
    mean = sum(map(len, documents.values())) / len(documents)
    scores: dict[str, float] = {}
    for word in query:
        having = {name: words.count(word) for name, words in documents.items() if word in words}
        weight = math.log(1 + (len(documents) - len(having) + 0.5) / (len(having) + 0.5))
        for name, times in having.items():
            length = 1 - B + B * len(documents[name]) / mean
            score = weight * times * (K1 + 1) / (times + K1 * length)
            scores[name] = scores.get(name, 0.0) + score
    return scores
