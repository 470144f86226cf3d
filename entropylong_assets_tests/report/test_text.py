from __future__ import annotations

import json
import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st

from entropylong_assets.report.text import as_json, excerpt, token_texts, visible
from entropylong_assets_tests.report.runs import HOSTILE, byte_tokenizer

DIRECTIONS = "\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def test_controls_and_directions_are_named() -> None:
    """Guards against text that controls a terminal or reverses the direction of a line."""
    assert visible("\x1b[31m\x00") == "␛[31m␀"
    assert visible("a\u202eb") == "a⟨U+202E⟩b"
    for sign in DIRECTIONS + "\u200b\u2060\ufeff\u2028\u2029\u0085\x7f\U000e0041":
        assert visible(sign) == f"⟨U+{ord(sign):04X}⟩"


def test_readable_text_stays() -> None:
    text = "naïve 😀\tकु\u200dष\nعربي 中文 👩\u200d💻"
    assert visible(text) == text


@given(st.text())
def test_nothing_visible_is_a_control(text: str) -> None:
    shown = visible(text)
    kinds = {unicodedata.category(c) for c in shown if c not in "\n\t\u200c\u200d"}
    assert not kinds & {"Cc", "Zl", "Zp", "Cs"}
    assert not set(shown) & set(DIRECTIONS)


@given(st.recursive(st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)))
def test_json_ends_no_element_and_reads_the_same(value: object) -> None:
    """Guards against `</script>`, `<!--` and line separators inside the data block."""
    text = as_json(value)
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == value


def test_an_excerpt_is_cut_and_marked() -> None:
    assert excerpt("  abcdef ", 3) == "abc…"
    assert excerpt("abc", 3) == "abc"


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_tokens_join_to_the_text(text: str) -> None:
    """Guards against characters lost or doubled where one is spread over several tokens."""
    tokenizer = byte_tokenizer()
    token_ids = tokenizer.encode([text])[0]
    texts = token_texts(tokenizer, token_ids)
    assert len(texts) == len(token_ids) == len(text.encode())
    # U+FFFD itself is taken for a broken character, and shown as one of its bytes each.
    if "\ufffd" not in text:
        assert "".join(texts) == visible(text)


def test_broken_bytes_are_shown_one_by_one() -> None:
    tokenizer = byte_tokenizer()
    token_ids = tokenizer.encode(["é"])[0][:1] * 3
    assert token_texts(tokenizer, token_ids) == ["\ufffd"] * 3
    assert "hacked" in "".join(token_texts(tokenizer, tokenizer.encode([HOSTILE])[0]))
