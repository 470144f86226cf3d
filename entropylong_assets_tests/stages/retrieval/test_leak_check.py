"""Containment against a naive count, what the leak check rejects, and its registry."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from entropylong_assets.settings.registry import Registry
from entropylong_assets.stages.retrieval.leak_check import WordNgrams
from entropylong_assets.stages.retrieval.registry import LEAK_CHECKS, make_leak_check
from entropylong_assets.stages.retrieval.settings import RetrievalSettings
from entropylong_assets_tests.extensions import installed

TEXTS = st.lists(st.sampled_from(["a", "B", "b", "c,", "é", "x1", "-", "\n"]), max_size=14)


def containment(chunk: str, root: str, n: int = 8) -> float:
    return make_leak_check(RetrievalSettings(leak_ngram_words=n), root).containment(chunk)


def naive_containment(chunk: str, root: str, n: int) -> float:
    """Look up every n-gram of the chunk at every position of the root, word by word."""
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
def test_containment_equals_the_naive_share(chunk: list[str], root: list[str], n: int) -> None:
    one, other = " ".join(chunk), " ".join(root)
    assert containment(one, other, n) == naive_containment(one, other, n)


ROOT = " ".join(f"word{i}" for i in range(60))


def test_containment_ignores_case_and_punctuation() -> None:
    check = WordNgrams(RetrievalSettings(), ROOT)
    assert check.containment(ROOT) == 1
    assert check.containment(ROOT.upper().replace(" ", ",\n")) == 1
    assert check.containment(" ".join(ROOT.split()[10:30])) == 1
    assert check.containment(" ".join(reversed(ROOT.split()))) == 0
    assert check.containment("") == check.containment("?! ...") == 0


def test_containment_of_half_a_copy_is_about_half() -> None:
    half = ROOT.split()[:30] + [f"other{i}" for i in range(30)]
    assert containment(" ".join(half), ROOT) == pytest.approx(23 / 53)


def test_containment_compares_a_text_shorter_than_the_ngram_as_a_whole() -> None:
    assert containment("word3 word4", ROOT) == 1
    assert containment("word4 word3", ROOT) == 0


class SameLength:
    """A leak check of another package: a chunk as long as the root is a copy."""

    def __init__(self, settings: RetrievalSettings, root_text: str) -> None:
        self._length = len(root_text)

    def containment(self, chunk_text: str) -> float:
        return float(len(chunk_text) == self._length)


def test_leak_check_of_another_package_is_used_by_name() -> None:
    point = EntryPoint("same_length", f"{__name__}:SameLength", "entropylong_assets.leak_checks")
    with installed(point):
        check = make_leak_check(RetrievalSettings(leak_check="same_length"), "four")
        assert (check.containment("five"), check.containment("three")) == (1, 0)
        assert LEAK_CHECKS.names() == ("word_ngrams", "same_length")
    assert LEAK_CHECKS.names() == ("word_ngrams",)


def test_unknown_leak_check_is_refused() -> None:
    assert isinstance(LEAK_CHECKS, Registry)
    with pytest.raises(ValidationError, match="no leak check 'none'; there are word_ngrams"):
        RetrievalSettings(leak_check="none")
