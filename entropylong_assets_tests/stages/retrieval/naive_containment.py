"""The definition of containment, word by word: an oracle for texts of words with spaces."""

from __future__ import annotations

import re
import unicodedata


def words_of(text: str) -> list[str]:
    ascii_text = unicodedata.normalize("NFD", text.lower()).encode("ascii", "ignore").decode()
    return re.findall(r"[a-z0-9]+", ascii_text)


def naive_containment(chunk: str, root: str, n: int) -> float:
    """Look for every n-gram of the chunk in the root's letters, whole and with each word edited."""
    words, letters = words_of(chunk), "".join(words_of(root))
    may_be_edited = len(words) >= n
    n = min(n, len(words))
    ngrams = {tuple(words[i : i + n]) for i in range(len(words) - n + 1)} if n else set()
    count = 0
    for ngram in ngrams:
        ways = ["".join(ngram)]
        for i in range(2, n - 2) if may_be_edited else ():
            gap = 3 * (len(ngram[i]) + 1)
            ways.append(f"{''.join(ngram[:i])}.{{0,{gap}}}{''.join(ngram[i + 1 :])}")
        count += any(re.search(way, letters) for way in ways)
    return count / len(ngrams) if ngrams else 0.0
