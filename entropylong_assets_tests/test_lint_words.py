"""The linter of words finds the words to avoid, and passes plain English."""

from __future__ import annotations

import pytest

from tools import lint_words

FOUND = (
    "Entropy behind the contexts",
    "what a caller is told",
    "left_out = told",
    "The rows that came first",
    "none where it has ended",
    "where nothing is learnt",
    "candidates an anchor",
    "| controls a root | 2 |",
    "at most 10 a minute",
    "60 bytes a pair, few of them scored",
    "what a context is worth",
    "its process is gone",
    "accepted at the same chance",
    "what is current is not made again",
    "by the examination of a shard",
    "most rows that one search is asked for",
    "nothing bears its name",
    "up to some 10 million chunks",
    "the number thereof",
    "the run waits for ever",
    "every row is counted anew",
    "Mend the line",
    "until it is asked back",
    "contains the shard as it is now",
    "models raise whatever they like",
    "What becomes of one model type",
)
PASSED = (
    "A server behind a proxy that has a login; a file behind a link",
    "The two can't be told apart.",
    "which contexts a root gets",
    "how many scored pairs a pair stands for",
    "pairs that a rule accepts by chance",
    "at most 10 per minute, 60 bytes per pair",
    "None if nothing is found",
    "becomes a sample of 16 tokens",
    "most rows of the table",
)


@pytest.mark.parametrize("text", FOUND)
def test_word_is_found(text: str) -> None:
    assert [number for number, _, _ in lint_words.find(f"A line.\n{text}\n")] == [2]


@pytest.mark.parametrize("text", PASSED)
def test_plain_english_passes(text: str) -> None:
    assert list(lint_words.find(text)) == []


def test_every_pattern_has_an_example() -> None:
    """The failure: a pattern with a mistake, which finds nothing."""
    matched = {instead for text in FOUND for _, _, instead in lint_words.find(text)}
    assert matched == set(lint_words.PATTERNS.values())


def test_line_that_is_allowed_passes() -> None:
    assert list(lint_words.find("x = told  # words: allow (a name of another library)")) == []


def test_the_package_its_tests_and_the_docs_are_checked() -> None:
    names = {path.relative_to(lint_words.REPOSITORY).as_posix() for path in lint_words.files()}
    assert {
        "README.md",
        "docs/operating.md",
        "entropylong_assets/cli/main.py",
        "entropylong_assets_tests/reference.py",
        "benchmarks/RESULTS.md",
    } <= names
