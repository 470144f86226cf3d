"""Containment against a naive count, what the leak check rejects, and its registry."""

from __future__ import annotations

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
from entropylong_assets_tests.stages.retrieval.naive_containment import naive_containment

TEXTS = st.lists(st.sampled_from(["a", "B", "b", "c,", "é", "x1", "-", "\n"]), max_size=30)


def containment(chunk: str, root: str, n: int = 8) -> float:
    return make_leak_check(RetrievalSettings(leak_ngram_words=n), root).containment(chunk)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(TEXTS, TEXTS, st.integers(1, 10))
def test_containment_equals_the_naive_share(chunk: list[str], root: list[str], n: int) -> None:
    one, other = " ".join(chunk), " ".join(root)
    assert containment(one, other, n) == naive_containment(one, other, n)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(TEXTS, st.data(), st.integers(4, 10))
def test_containment_of_an_edited_copy_equals_the_naive_share(
    root: list[str], data: st.DataObject, n: int
) -> None:
    chunk = list(root)
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(chunk)))
        chunk[at : at + data.draw(st.integers(0, 1))] = data.draw(st.sampled_from([[], ["yes"]]))
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


def test_containment_counts_ngrams_around_one_edited_word() -> None:
    words = ROOT.split()
    copies = {
        "changed": [*words[:30], "other", *words[31:]],
        "missing": [*words[:30], *words[31:]],
        "extra": [*words[:30], "other", *words[30:]],
    }
    # An edited word counts in four of the eight places of an n-gram.
    containments = {name: containment(" ".join(copy), ROOT) for name, copy in copies.items()}
    assert containments["changed"] == pytest.approx(49 / 53)
    assert containments["extra"] == pytest.approx(50 / 54)
    assert 47 / 52 <= containments["missing"] < 1
    two = [*words[:30], "other", words[31], "another", *words[33:]]
    assert containment(" ".join(two), ROOT) == pytest.approx((53 - 10) / 53)


def test_containment_compares_a_text_shorter_than_the_ngram_as_a_whole() -> None:
    assert containment("word3 word4", ROOT) == 1
    assert containment("word4 word3", ROOT) == 0


def test_containment_of_a_chunk_longer_than_the_root_is_its_share() -> None:
    assert containment(ROOT, " ".join(ROOT.split()[:20])) == pytest.approx(13 / 53)
    assert containment(ROOT, "word1 word2") == containment(ROOT, "") == 0


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
