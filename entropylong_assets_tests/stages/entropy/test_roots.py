"""Which documents become roots: the draw by hash, and the lengths that are allowed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import polars as pl
import pytest

from entropylong_assets.stages.entropy.roots import RootChoice, draw, drawn_share, is_drawn
from entropylong_assets.stages.entropy.settings import RootSettings


def ids(n: int) -> list[str]:
    return [hashlib.sha256(str(i).encode()).hexdigest()[:32] for i in range(n)]


def encode(texts: Sequence[str]) -> list[list[int]]:
    """One token per word."""
    return [[len(word) for word in text.split()] for text in texts]


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.15, 0.5, 1.0])
def test_is_drawn_selects_the_fraction(fraction: float) -> None:
    drawn = sum(is_drawn(i, 7, fraction) for i in ids(20_000))
    spread = 4 * math.sqrt(20_000 * fraction * (1 - fraction))
    assert abs(drawn - fraction * 20_000) <= spread


def test_is_drawn_depends_on_the_seed_and_grows_with_the_fraction() -> None:
    small = {i for i in ids(5_000) if is_drawn(i, 1, 0.1)}
    large = {i for i in ids(5_000) if is_drawn(i, 1, 0.3)}
    other = {i for i in ids(5_000) if is_drawn(i, 2, 0.1)}
    assert small < large
    assert len(small & other) < 0.5 * len(small)


def test_is_drawn_selects_the_same_documents_as_earlier_releases() -> None:
    """Pinned: the roots of a corpus must not change with a release."""
    drawn = [i for i, doc_id in enumerate(ids(60)) if is_drawn(doc_id, 20251002, 0.1)]
    assert drawn == [2, 5, 7, 10, 18, 21, 33, 42]


def test_draw_uses_the_fraction_of_the_source_and_keeps_the_order() -> None:
    documents = pl.DataFrame({"doc_id": ids(90), "source": ["a", "b", "c"] * 30})
    settings = RootSettings(fraction=0.3, fraction_by_source={"b": 1.0, "c": 0.0})
    drawn = draw(documents, settings, 5, 0)
    expected = [
        doc_id
        for doc_id, source in documents.iter_rows()
        if source == "b" or (source == "a" and is_drawn(doc_id, 5, 0.3))
    ]
    assert drawn["doc_id"].to_list() == expected
    assert 30 < len(expected) < 60


def choose(
    lengths: Sequence[int], batch: int, settings: RootSettings, max_model_tokens: int = 9
) -> tuple[list[tuple[str, list[int]]], list[dict[str, Any]], RootChoice, list[int]]:
    """Roots, dropped rows and the choice for documents of these lengths, and texts encoded."""
    texts = [" ".join("w" * (i % 5 + 1) for i in range(n)) for n in lengths]
    names = [f"d{i}" for i in range(len(lengths))]
    documents = pl.DataFrame({"doc_id": names, "text": texts, "source": ["s"] * len(lengths)})
    choice, encoded = RootChoice(settings, 1, max_model_tokens, 0), [0]
    dropped: list[dict[str, Any]] = []

    def counting(texts: Sequence[str]) -> list[list[int]]:
        encoded[0] += len(texts)
        return encode(texts)

    roots = list(choice.roots(documents.iter_slices(batch), counting, dropped.extend))
    return roots, dropped, choice, encoded


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_root_choice_drops_documents_by_length_with_a_reason(batch: int) -> None:
    settings = RootSettings(fraction=1.0, min_tokens=4, max_tokens=11)
    roots, dropped, choice, _ = choose([3, 4, 9, 10, 11, 12, 0, 7], batch, settings)
    assert [(root_id, len(token_ids)) for root_id, token_ids in roots] == [
        ("d1", 4),
        ("d2", 9),
        ("d7", 7),
    ]
    assert [(row["root_id"], row["reason"], row["n_tokens"]) for row in dropped] == [
        ("d0", "too_short_for_root", 3),
        ("d3", "too_long_for_model", 10),
        ("d4", "too_long_for_model", 11),
        ("d5", "too_long_for_root", 12),
        ("d6", "too_short_for_root", 0),
    ]
    assert (choice.documents, choice.drawn) == (8, 8)
    assert choice.dropped == {
        "too_short_for_root": 2,
        "too_long_for_root": 1,
        "too_long_for_model": 2,
    }


def test_root_choice_tokenises_drawn_documents_only() -> None:
    settings = RootSettings(fraction=0.25, min_tokens=2, max_tokens=9)
    roots, dropped, choice, encoded = choose([5] * 200, 32, settings)
    expected = [f"d{i}" for i in range(200) if is_drawn(f"d{i}", 1, 0.25)]
    assert [root_id for root_id, _ in roots] == expected
    assert encoded == [len(expected)] == [choice.drawn]
    assert choice.documents == 200
    assert not dropped


def test_number_of_roots_is_met_whatever_the_size_of_the_corpus() -> None:
    """The default share of 0.0001 drew no root from a corpus of thousands."""
    for settings, wished in ((RootSettings(), 100), (RootSettings(number=300, fraction=0.5), 300)):
        for rows in (2_000, 40_000):
            documents = pl.DataFrame({"doc_id": ids(rows), "source": ["s"] * rows})
            n = len(draw(documents, settings, 3, rows))
            assert abs(n - wished) <= 4 * math.sqrt(wished), (wished, rows)
    few = pl.DataFrame({"doc_id": ids(20), "source": ["s"] * 20})
    assert len(draw(few, RootSettings(), 3, 20)) == 20


def test_share_of_a_source_takes_precedence_over_the_number() -> None:
    settings = RootSettings(number=10, fraction_by_source={"b": 1.0, "c": 0.0})
    shares = [drawn_share(settings, source, 1000) for source in "abc"]
    assert shares == [0.01, 1.0, 0.0]


@pytest.mark.parametrize(
    ("settings", "lengths", "words"),
    [
        ({"fraction": 0.0}, [5], ["0 of 1 documents were drawn under roots.fraction 0;"]),
        ({"number": 1}, [], ["the shard has no document"]),
        (
            {"fraction": 1.0, "min_tokens": 4, "max_tokens": 8},
            [2, 3, 9, 10],
            ["4 of 4 documents", "2 too_long_for_root", "2 too_short_for_root", "min_tokens is 4"],
        ),
    ],
)
def test_why_none_names_the_cause(
    settings: dict[str, Any], lengths: list[int], words: list[str]
) -> None:
    _, _, choice, _ = choose(lengths, 2, RootSettings(**settings), 9)
    for part in words:
        assert part in choice.why_none()
