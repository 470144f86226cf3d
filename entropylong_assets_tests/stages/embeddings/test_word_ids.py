"""Token ids word by word are those of the whole text. Oracle: the package `tokenizers` itself."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordPiece
from tokenizers.processors import BertProcessing, TemplateProcessing

from entropylong_assets.stages.embeddings import word_ids
from entropylong_assets.stages.embeddings.word_ids import TokenCounter, WordByWord, tokenizes_words

LETTERS = "abcdeéß日本語Ǆıİ ﬁ́̈"
PIECES = [*LETTERS, "##a", "##b", "##ab", "ab", "cd", "##cd", "##é", "dz", ",", ".", "[", "]", "_"]
ODD = [
    *(
        "",
        " ",
        "  ",
        "\n",
        "\n\n ",
        "\t",
        "\r\n",
        "\x00",
        "\x1c",
        "\x85",
        "\xa0",
        "\u2028",
        "\u3000",
    ),
    *("́", "̈", "İ", "ΑΣ", "ﬁ", "日本語", "[MASK]", "[SEP]", "a[MASK]b", "<x>", "ab" * 80, "\ufffd"),
    *("a", "b", "ab", "abcd", "é", "É", ".", ",", "_", "\u200b", "\u00ad", "\ud7ff", "\U0001f600"),
]


def make(
    *, special_as_text: bool = True, added: tuple[AddedToken, ...] = (), **normal: Any
) -> Tokenizer:
    special = ("[UNK]", "[CLS]", "[SEP]", "[MASK]", "[PAD]")
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys([*special, *PIECES]))}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(**normal)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer.add_special_tokens(list(special))
    tokenizer.add_tokens(list(added))
    tokenizer.encode_special_tokens = special_as_text
    return tokenizer


def odd_texts(count: int) -> list[str]:
    draw = random.Random(5)
    return ["".join(draw.choices([*ODD, " ", " "], k=draw.randint(0, 30))) for _ in range(count)]


@pytest.mark.parametrize("special_as_text", [True, False])
@pytest.mark.parametrize(
    "normal",
    [
        {},
        {"clean_text": False},
        {"lowercase": False},
        {"handle_chinese_chars": False, "strip_accents": True, "lowercase": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("special", [True, False])
def test_ids_by_words_are_those_of_the_text(
    special: bool, normal: dict[str, Any], special_as_text: bool
) -> None:
    """Characters that only some of Unicode's tables call white space, accents that would join
    across a border, control characters that vanish, special tokens in the text."""
    added = (AddedToken("<x>"), AddedToken("abcd", normalized=True, single_word=True))
    tokenizer = make(special_as_text=special_as_text, added=added, **normal)
    assert tokenizes_words(tokenizer)
    whole, words = TokenCounter(tokenizer, special), WordByWord(tokenizer, special)
    texts = [*ODD, *odd_texts(400)]
    expected = [ids.tolist() for ids in whole.ids(texts)]
    assert [ids.tolist() for ids in words.ids(texts)] == expected
    assert words.count(texts) == whole.count(texts) == [len(ids) for ids in expected]
    assert len({tuple(ids) for ids in expected}) > 200, "the texts are too much alike"


def test_forgotten_words_are_tokenized_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A corpus of ever new words must neither fill the memory nor lose a word of a text at the
    moment of forgetting."""
    monkeypatch.setattr(word_ids, "_MOST_COST", 700)
    tokenizer = make()
    words = WordByWord(tokenizer, special=True)
    texts = odd_texts(200)
    assert [ids.tolist() for text in texts for ids in words.ids([text])] == [
        tokenizer.encode(text).ids for text in texts
    ]
    assert len(words._of) < 40


def test_texts_are_split_only_for_tokenizers_that_split_them() -> None:
    """Blanks are part of the tokens of most others, and then ids by words would be wrong."""
    assert tokenizes_words(make())
    assert not tokenizes_words(Tokenizer(BPE()))
    assert not tokenizes_words(make(added=(AddedToken("two words"),)))
    assert not tokenizes_words(make(added=(AddedToken("<x>", rstrip=True),)))
    other = make()
    other.pre_tokenizer = pre_tokenizers.Metaspace()
    assert not tokenizes_words(other)
    template = make()
    template.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    assert WordByWord(template, special=True).ids(["ab"])[0].tolist() == template.encode("ab").ids
