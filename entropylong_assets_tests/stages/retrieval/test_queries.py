"""The query of an anchor is the text around it, also if tokens split characters."""

from __future__ import annotations

import pytest

from entropylong_assets.stages.entropy.model import Tokenizer, load_tokenizer
from entropylong_assets.stages.entropy.settings import ScoringModelSettings
from entropylong_assets.stages.retrieval.queries import anchor_query

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


def test_anchor_query_is_cut_at_the_ends_of_the_root(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(["abcdefghij" * 5])[0]
    for anchor in (0, 1, len(ids) - 1):
        window = ids[max(0, anchor - 3) : anchor + 4]
        assert anchor_query(tokenizer, ids, anchor, 3) == tokenizer.decode(window)
    assert anchor_query(tokenizer, ids, 5, 999) == "abcdefghij" * 5
