"""Phrases are counted as a plain loop over the documents counts them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.embeddings.phrases import (
    count_phrases,
    find_words,
    split_words,
)
from entropylong_assets.storage.tables import TableStore

TEXTS = [
    "Returns\n-------\nout : ndarray\n    It's the result.",
    "Returns\n-------\nout: float, the result.",
    "今天下雨，明天晴。 abc今天下雨",
    "今天下雨！ le café\u00a0noir, naïve",
    "ab\tab ab ab",
    "one two",
    "",
]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's x_1: [42]", ["It", "'", "s", "x", "_", "1", ":", "[", "42", "]"]),
        ("今天OK了", ["今", "天", "OK", "了"]),
        ("cafe\u0301 naïve\u00a0 \u200b x", ["cafe\u0301", "naïve", "x"]),
        ("สวัส ab", ["ส", "ว", "ั", "ส", "ab"]),
        ("", []),
    ],
)
def test_words_of_a_text(text: str, words: list[str]) -> None:
    assert split_words(text) == words
    assert [text[word.start : word.end] for word in find_words(text)] == words


def write_documents(store: TableStore, shards: dict[str, list[str]]) -> None:
    for shard, texts in shards.items():
        rows = [
            {
                "doc_id": f"{hash_of(text):016x}",
                "text": text,
                "source": "s",
                "file": "f",
                "row": row,
                "external_id": None,
                "license": "cc0",
                "n_chars": len(text),
            }
            for row, text in enumerate(texts)
        ]
        with store.write(CORPUS_DOCUMENTS, shard, fingerprint="f", determinants={}) as writer:
            writer.append("documents", rows)
            writer.summary = {}


def hash_of(text: str) -> int:
    return sum(ord(character) * 31**place for place, character in enumerate(text)) % 2**61


@pytest.mark.parametrize("max_documents", [100, 4])
def test_documents_of_a_phrase_are_counted_once_each(tmp_path: Path, max_documents: int) -> None:
    """In any split into shards, a document that two shards hold included."""
    counted = []
    for name, shards in {
        "one": {"a": TEXTS},
        "two": {"a": TEXTS[:4], "b": [*TEXTS[3:], TEXTS[0]]},
    }.items():
        store = TableStore(str(tmp_path / name))
        write_documents(store, shards)
        counted.append(count_phrases(store, list(shards), max_documents))
    frame, documents = counted[0]
    assert documents == min(max_documents, len(TEXTS))
    assert counted[1][1] == documents
    assert frame.equals(counted[1][0])

    read = sorted(TEXTS, key=lambda text: f"{hash_of(text):016x}")[:max_documents]
    expected: Counter[str] = Counter()
    for text in read:
        words = split_words(text)
        for n in (2, 3):
            expected.update({" ".join(words[i : i + n]) for i in range(len(words) - n + 1)})
    assert dict(frame.iter_rows()) == {p: n for p, n in expected.items() if n > 1}
    assert frame["phrase"].is_sorted()
    if max_documents == 100:
        assert dict(frame.iter_rows())["天 下 雨"] == 2
        assert dict(frame.iter_rows())["Returns - -"] == 2


def test_nothing_is_counted_of_an_empty_corpus(tmp_path: Path) -> None:
    frame, documents = count_phrases(TableStore(str(tmp_path)), [], 10)
    assert documents == 0
    assert frame.schema == {"phrase": pl.String, "documents": pl.Int32}
