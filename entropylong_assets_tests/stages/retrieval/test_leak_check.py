"""Containment against a naive count, and what the guard is there to refuse."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropylong_assets.stages.retrieval.leak_check import RootGuard, containment

TEXTS = st.lists(st.sampled_from(["a", "B", "b", "c,", "é", "x1", "-", "\n"]), max_size=14)


def naive(chunk: str, root: str, n: int) -> float:
    """Every n-gram of the chunk looked up in every place of the root, word by word."""
    words, root_words = re.findall(r"\w+", chunk.lower()), re.findall(r"\w+", root.lower())
    n = min(n, len(words))
    if n == 0:
        return 0.0
    grams: list[list[str]] = []
    for i in range(len(words) - n + 1):
        if words[i : i + n] not in grams:
            grams.append(words[i : i + n])
    hits = 0
    for gram in grams:
        hits += any(root_words[j : j + n] == gram for j in range(len(root_words) - n + 1))
    return hits / len(grams)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(TEXTS, TEXTS, st.integers(1, 8))
def test_containment_is_the_naive_share(chunk: list[str], root: list[str], n: int) -> None:
    one, other = " ".join(chunk), " ".join(root)
    assert containment(one, other, n) == naive(one, other, n)


ROOT = " ".join(f"word{i}" for i in range(60))


def test_copies_are_seen_whatever_their_case_and_marks() -> None:
    guard = RootGuard(ROOT, 8)
    assert guard.containment(ROOT) == 1
    assert guard.containment(ROOT.upper().replace(" ", ",\n")) == 1
    assert guard.containment(" ".join(ROOT.split()[10:30])) == 1
    assert guard.containment(" ".join(reversed(ROOT.split()))) == 0
    assert guard.containment("") == guard.containment("?! ...") == 0


def test_half_a_copy_is_about_half() -> None:
    half = ROOT.split()[:30] + [f"other{i}" for i in range(30)]
    assert RootGuard(ROOT, 8).containment(" ".join(half)) == pytest.approx(23 / 53)


def test_a_text_shorter_than_the_n_gram_is_compared_whole() -> None:
    guard = RootGuard(ROOT, 8)
    assert guard.containment("word3 word4") == 1
    assert guard.containment("word4 word3") == 0
