"""The query of an anchor is the text around it, also if tokens split characters."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from entropylong_assets.stages.entropy.model import Tokenizer, load_tokenizer
from entropylong_assets.stages.entropy.settings import ScoringModelSettings
from entropylong_assets.stages.retrieval.queries import anchor_query, fitting_queries

TEXT = "Äpfel 🙂🙂 汉字汉字 naïve straße — ﷽ 👩‍👩‍👧 end of text"


@pytest.fixture(scope="module")
def tokenizer(tiny_models: tuple[str, str]) -> Tokenizer:
    """Byte-level: a character outside ASCII takes two to four tokens."""
    return load_tokenizer(ScoringModelSettings(model=tiny_models[0]))


@pytest.mark.parametrize("half_window", [0, 1, 2, 3, 5, 16])
def test_anchor_query_is_part_of_the_text(tokenizer: Tokenizer, half_window: int) -> None:
    ids = tokenizer.encode([TEXT])[0]
    assert len(ids) > len(TEXT), "no character has several tokens, so this would test nothing"
    assert tokenizer.decode(ids) == TEXT
    queries = [anchor_query(tokenizer, ids, t, half_window) for t in range(len(ids))]
    for query in queries:
        assert query in TEXT
        assert query == query.strip()
        assert "\N{REPLACEMENT CHARACTER}" not in query
    assert all(queries) or half_window < 3


@pytest.mark.parametrize("room", [1, 7, 12, 20, 60])
def test_fitting_queries_keep_the_anchor_in_their_middle(room: int) -> None:
    """Letters stand for tokens; the embedder sees `room` characters."""
    text = "abcdefghijklmnopqrstuvwxyz" * 2

    def query(anchor: int, half_window: int) -> str:
        return text[max(0, anchor - half_window) : anchor + half_window + 1]

    def fits(texts: Sequence[str]) -> list[bool]:
        return [len(t) <= room for t in texts]

    anchors = [0, 2, 20, 50]
    queries, shortened = fitting_queries(query, anchors, 9, fits)
    for anchor, fitting in zip(anchors, queries, strict=True):
        whole = query(anchor, 9)
        longest = max((query(anchor, w) for w in range(10) if fits([query(anchor, w)])[0]), key=len)
        assert fitting == longest
        assert text[anchor] in fitting
        assert (fitting == whole) == (len(whole) <= room)
    assert shortened == sum(len(query(anchor, 9)) > room for anchor in anchors)


def test_fitting_queries_leave_a_long_anchor_to_the_embedder() -> None:
    queries, shortened = fitting_queries(lambda a, w: "x" * (9 + w), [3], 4, lambda t: [False])
    assert (queries, shortened) == (["x" * 9], 1)
    assert fitting_queries(lambda a, w: "x", [], 4, lambda t: [True] * len(t)) == ([], 0)


def test_anchor_query_is_cut_at_the_ends_of_the_root(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(["abcdefghij" * 5])[0]
    for anchor in (0, 1, len(ids) - 1):
        window = ids[max(0, anchor - 3) : anchor + 4]
        assert anchor_query(tokenizer, ids, anchor, 3) == tokenizer.decode(window)
    assert anchor_query(tokenizer, ids, 5, 999) == "abcdefghij" * 5
