"""Decontamination: planted quotations are found with their place; clean documents are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entropylong_assets.settings.section import SettingsError
from entropylong_assets.stages.corpus.errors import CorpusError
from entropylong_assets.stages.corpus.evaluation_sets import build_index, compared_words
from entropylong_assets.stages.corpus.settings import EvaluationSet
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets_tests.stages.corpus.files_for_tests import ingest_one, settings_for

WORDS = [f"{a}{b}{c}" for a in "bdfglmnprstv" for b in "aeiou" for c in ("n", "rt", "sk", "ll")]
HAN = [chr(0x4E00 + 41 * i) for i in range(400)]


def words(seed: int, count: int, alphabet: list[str] = WORDS) -> list[str]:
    return list(np.random.default_rng(seed).choice(alphabet, count))


QUESTION = " ".join(words(1, 60)).capitalize() + "?"
LONG = ". ".join(" ".join(words(seed, 12)).capitalize() for seed in range(100, 140))
CHINESE = "".join(words(2, 50, HAN)) + "。"
TEXTS = [QUESTION, LONG, CHINESE, "too short", None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [{"question": text, "context": "none given"} for text in TEXTS]
    (tmp_path / "eval.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def run(folder: Path, documents: list[str], **over: Any) -> tuple[Any, Any, Any, Any]:
    """Documents, drops, contaminated and summary of a shard with these documents."""
    evaluation = {"name": "quiz", "uri": str(folder / "eval.jsonl"), "fields": ["question"], **over}
    source = folder / "documents.jsonl"
    source.write_text("\n".join(json.dumps({"text": text}) for text in documents))
    settings = settings_for(source, folder / "data", min_chars=10, decontaminate=[evaluation])
    store, key = ingest_one(settings)
    tables = [
        store.read(CORPUS_DOCUMENTS, key, t) for t in ("documents", "dropped", "contaminated")
    ]
    return (*tables, store.summary(CORPUS_DOCUMENTS, key))


def clean(seed: int, count: int = 80) -> str:
    return " ".join(words(seed, count))


QUOTATIONS = {
    "plain": QUESTION,
    "upper case": QUESTION.upper(),
    "white space": QUESTION.replace(" ", "\n\t  "),
    "html": "<p>" + QUESTION.replace(" ", " <b class='x'>", 3).replace(" ", "&nbsp;", 9) + "</p>",
    "markdown": QUESTION.replace(" ", "](https://example.org/a/b) [", 4).replace(" ", " **", 7),
    "punctuation": QUESTION.replace(" ", ", "),
    "an edit per 20 words": " ".join(
        "edited" if i % 20 == 10 else w for i, w in enumerate(QUESTION.split())
    ),
    "a passage of the long text": LONG[300:800],
    "Chinese": CHINESE,
}


@pytest.mark.parametrize("kind", QUOTATIONS)
def test_a_quotation_is_found_with_its_place(folder: Path, kind: str) -> None:
    quotation = QUOTATIONS[kind]
    before, after = clean(7), clean(8)
    text = f"{before} {quotation} {after}"
    documents, dropped, contaminated, summary = run(folder, [text, clean(9)])
    assert documents["text"].to_list() == [clean(9)]
    assert dropped["reason"].to_list() == ["contaminated"]
    (row,) = contaminated.to_dicts()
    assert row["evaluation_set"] == "quiz"
    expected = {"a passage of the long text": 1, "Chinese": 2}.get(kind, 0)
    assert row["text"] == expected
    quoted = text[row["start"] : row["end"]]
    start, end = len(before) + 1, len(before) + 1 + len(quotation)
    assert set(compared_words(quoted)) <= set(compared_words(quotation))
    assert abs(row["start"] - start) < 60
    assert abs(row["end"] - end) < 60
    assert summary.rows_read == summary.documents + sum(summary.dropped.values())
    (figures,) = summary.evaluation_sets
    assert (figures.texts, figures.too_short, figures.documents) == (4, 1, 1)
    assert f"characters {row['start']} to {row['end']}" in dropped["detail"].item()


def test_clean_documents_are_kept(folder: Path) -> None:
    """Of the same words, and with a short phrase of an evaluation text."""
    phrase = " ".join(QUESTION.split()[:12])
    texts = [clean(seed) for seed in range(1000, 1300)] + [f"{clean(5)} {phrase} {clean(6)}"]
    documents, dropped, contaminated, _ = run(folder, texts)
    assert len(documents) == len(texts)
    assert dropped.is_empty()
    assert contaminated.is_empty()


def test_tagged_documents_are_kept_and_listed(folder: Path) -> None:
    documents, dropped, contaminated, summary = run(folder, [QUESTION, clean(9)], action="tag")
    assert len(documents) == 2
    assert dropped.is_empty()
    assert contaminated["action"].to_list() == ["tag"]
    assert contaminated["doc_id"].item() == documents["doc_id"][0]
    assert summary.evaluation_sets[0].documents == 1


def test_the_overlap_is_the_share_of_the_text(folder: Path) -> None:
    """60 words are 53 n-grams of 8; 40 of them are all of it. 27 words are 20 n-grams: a half."""
    for count, quotations in ((27, 1), (26, 0)):
        quotation = " ".join(QUESTION.split()[:count])
        assert len(run(folder, [f"{clean(3)} {quotation} {clean(4)}"])[2]) == quotations


def test_the_hash_names_the_content() -> None:
    evaluation = EvaluationSet(name="a", uri="b")
    one, same, other = (
        build_index(evaluation, iter(texts)).content
        for texts in ([QUESTION, LONG], [QUESTION, LONG], [QUESTION, LONG + "."])
    )
    assert one == same != other


def test_a_set_that_cannot_be_read_is_named(folder: Path) -> None:
    with pytest.raises(CorpusError, match=r"set 'quiz': .*eval.jsonl, row 0: .*no field 'answer'"):
        run(folder, [clean(1)], fields=["answer"])


def test_two_sets_need_two_names(folder: Path) -> None:
    sets = [{"name": "a", "uri": "x"}, {"name": "a", "uri": "y"}]
    with pytest.raises((SettingsError, ValueError), match="two entries have the same name"):
        settings_for(folder / "x.jsonl", decontaminate=sets)
