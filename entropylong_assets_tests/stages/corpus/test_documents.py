"""Canonical text, ids and drops of a shard."""

from __future__ import annotations

import json
import random
import re
import unicodedata
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from entropylong_assets.stages.corpus.documents import (
    _COMPOSED,
    canonical_texts,
    document_id,
    ingest_shard,
)
from entropylong_assets.stages.corpus.shards import plan_shards
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.stages.corpus.files_for_tests import (
    compress,
    ingest,
    settings_for,
    write_rows,
)

# Written from the names of the characters, apart from the code's ranges.
_BREAKS = {"\r", "\x0b", "\x0c", "\x85", "\u2028", "\u2029"}
_INVISIBLE = {
    unicodedata.lookup(name)
    for name in [
        "SOFT HYPHEN", "ZERO WIDTH SPACE", "WORD JOINER", "ZERO WIDTH NO-BREAK SPACE",
        "ARABIC LETTER MARK", "LEFT-TO-RIGHT MARK", "RIGHT-TO-LEFT MARK",
        "LEFT-TO-RIGHT EMBEDDING", "RIGHT-TO-LEFT EMBEDDING", "POP DIRECTIONAL FORMATTING",
        "LEFT-TO-RIGHT OVERRIDE", "RIGHT-TO-LEFT OVERRIDE", "LEFT-TO-RIGHT ISOLATE",
        "RIGHT-TO-LEFT ISOLATE", "FIRST STRONG ISOLATE", "POP DIRECTIONAL ISOLATE",
    ]
}  # fmt: skip


def oracle(text: str) -> str:
    """The canonical form, character by character, with Python's own Unicode tables."""
    out = []
    for char in text.replace("\r\n", "\n"):
        if char in _BREAKS:
            out.append("\n")
        elif unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t":
            continue
        elif char not in _INVISIBLE:
            out.append(char)
    return unicodedata.normalize("NFC", "".join(out)).strip()


AWKWARD = st.sampled_from(
    [
        *[*sorted(_BREAKS | _INVISIBLE), "\r\n", "\x00", "\ud800", "\udfff", "\x7f", "\t", " "],
        *["e\u0301", "\u212b", "\ufb01", "\u1100\u1161", "\u0301", "\u3000", "\u200c", "\u200d"],
        *["\U0001f468\u200d\U0001f469", "שלום", "مرحبا"],
    ]
)
# Characters that both Unicode versions at hand know; a later one may compose what it brings in.
KNOWN = st.characters(max_codepoint=0x2FFFF).filter(lambda c: unicodedata.category(c) != "Cn")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(AWKWARD, KNOWN), max_size=30).map("".join))
def test_canonical_text_is_what_the_oracle_says_and_stays_so(text: str) -> None:
    (once,) = canonical_texts([text])
    assert once == oracle(text)
    assert canonical_texts([once]) == [once]


def test_characters_that_are_passed_as_composed_are() -> None:
    """Texts of these characters skip the normalization, so NFC must change no pair of them."""
    everything = [chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000]
    inert = re.findall(re.sub(r"\\x\{(\w+)\}", _as_python, f"[{_COMPOSED}]"), "".join(everything))
    assert len(inert) > 30_000
    # What may join the character before it: the second parts of all decompositions, and the
    # vowels and finals of Hangul.
    joins = {chr(i) for i in (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))}
    for char in everything:
        parts = unicodedata.decomposition(char).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            joins.add(chr(int(parts[1], 16)))
    assert len(joins) > 80
    for char in inert:
        assert unicodedata.normalize("NFC", char) == char
        assert unicodedata.combining(char) == 0
        assert char not in joins


def _as_python(code: re.Match[str]) -> str:
    return re.escape(chr(int(code[1], 16)))


def test_canonical_text_keeps_what_scripts_need() -> None:
    kept = ["👨‍👩‍👧 family", "می‌خواهم", "क्‍ष", "a\tb\n\nc", "x ≤ y", "ﬁ"]
    assert canonical_texts(kept) == kept
    assert canonical_texts(["\u202eevil\u202c", "\ufeffa", "co\u00adop"]) == ["evil", "a", "coop"]


def test_long_runs_of_combining_marks_take_no_quadratic_time() -> None:
    """Python's own normalization would take hours for this text."""
    (text,) = canonical_texts(["a" + "\u0301\u0323" * 1_000_000])
    assert text[0] == "\u1ea1"
    assert len(text) == 2_000_000


def test_document_ids_are_128_bits_of_the_text() -> None:
    ids = {document_id(f"text {i}") for i in range(10_000)}
    assert len(ids) == 10_000
    assert all(len(i) == 32 and set(i) <= set("0123456789abcdef") for i in ids)
    # Pinned: ids are names in stored tables, and must not change with a release.
    assert document_id("é") == "d4b1b0202b21bb84e60a3d272ecab0db"


TEXTS = {
    "long": "word " * 50,
    "first": "a fine text of some ten words or so, good",
    "short": "tiny",
    "spaces": " \n\t\u3000 ",
    "invisible": "\u200b\u2060\ufeff\x00",
    "nul": "before\x00after and some more",
    "emoji": "🙂🎉🏳️‍🌈" * 5,
    "rtl": "שלום עולם, מה שלומך היום?",
    "copy": "a fine text of some ten words\u200b or so, good",
    "surrogate": "lone \ud83d surrogate here, no more",
    "special": "<|endoftext|><s>[INST] not a control token",
}


def test_every_row_ends_as_a_document_or_under_a_reason(tmp_path: Path) -> None:
    rows = [{"id": key, "text": text} for key, text in TEXTS.items()]
    path = write_rows(tmp_path / "a.jsonl", rows)
    config = settings_for(path, id_field="id", min_chars=10, max_chars=200, shard_rows=6)
    documents, dropped, summaries = ingest(config, TableStore(str(tmp_path / "data")))
    reasons = {drop["external_id"]: drop["reason"] for drop in dropped}
    assert reasons == {
        "long": "too_long",
        "short": "too_short",
        "spaces": "empty",
        "invisible": "empty",
    }
    texts = {document["external_id"]: document["text"] for document in documents}
    assert texts["nul"] == "beforeafter and some more"
    assert texts["surrogate"] == "lone  surrogate here, no more"
    assert texts["special"] == TEXTS["special"]
    # `copy` is the same text as `first` but in the next shard: the index resolves that.
    assert texts["copy"] == texts["first"]
    assert [s.rows_read for s in summaries] == [6, 5]
    for summary in summaries:
        assert summary.rows_read == summary.documents + sum(summary.dropped.values())
    assert summaries[0].dropped == {"empty": 2, "too_long": 1, "too_short": 1}
    assert all(document["n_chars"] == len(document["text"]) for document in documents)
    assert sum(s.chars for s in summaries) == sum(len(d["text"]) for d in documents)


def test_a_copy_within_the_shard_counts_once_and_the_first_counts(tmp_path: Path) -> None:
    rows = [{"id": "same", "text": text} for text in ["one text", "two", "one text\n", "one\ttext"]]
    path = write_rows(tmp_path / "a.csv", rows)
    documents, dropped, _ = ingest(
        settings_for(path, id_field="id"), TableStore(str(tmp_path / "data"))
    )
    # Equal ids of the source are no copies: texts are. The third takes two lines.
    assert [(d["row"], d["text"]) for d in documents] == [
        (0, "one text"),
        (1, "two"),
        (4, "one\ttext"),
    ]
    assert [(d["row"], d["reason"]) for d in dropped] == [(2, "duplicate_in_shard")]
    assert documents[0]["doc_id"] in dropped[0]["detail"]


def test_documents_are_the_same_however_files_are_cut(tmp_path: Path) -> None:
    """Documents and their ids depend on the text alone, never on shards or their order."""
    draw = random.Random(5)
    rows = [{"id": str(i), "text": f"{draw.random()} " * 5} for i in range(300)]
    write_rows(tmp_path / "one/a.jsonl", rows)
    write_rows(tmp_path / "two/b.parquet", rows[:170])
    write_rows(tmp_path / "two/a.csv.gz", rows[170:])
    tables = []
    for folder, shard_rows in [("one", 300), ("one", 7), ("two", 50)]:
        config = settings_for(tmp_path / folder, shard_rows=shard_rows)
        documents, dropped, _ = ingest(config, TableStore(str(tmp_path / f"d{folder}{shard_rows}")))
        assert not dropped
        tables.append({d["doc_id"]: (d["text"], d["n_chars"]) for d in documents})
    assert tables[0] == tables[1] == tables[2]
    assert len(tables[0]) == 300


def test_ingest_of_many_tiny_documents_is_linear(tmp_path: Path) -> None:
    """100,000 of them: one shard, many batches, nothing quadratic."""
    lines = "".join(f'{{"text": "t{i}"}}\n' for i in range(100_000))
    path = compress(tmp_path / "a.jsonl.gz", lines.encode())
    progress: list[int] = []
    config = settings_for(path)
    store = TableStore(str(tmp_path / "data"))
    (shard,) = plan_shards(config).shards
    with store.write(CORPUS_DOCUMENTS, shard.key, fingerprint="-") as writer:
        summary = ingest_shard(shard, config, writer, progress.append)
    assert summary.documents == 100_000
    assert min(progress) > 0
    assert sum(progress) == 100_000
    assert len(progress) > 50


def test_a_line_of_50_mb_becomes_a_drop_and_its_neighbours_stay(tmp_path: Path) -> None:
    big = json.dumps({"text": "é" * 25_000_000}, ensure_ascii=False)
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "before"}}\n{big}\n{{"text": "after"}}\n', encoding="utf-8")
    documents, dropped, _ = ingest(settings_for(path), TableStore(str(tmp_path / "data")))
    assert [d["text"] for d in documents] == ["before", "after"]
    assert [(d["row"], d["reason"]) for d in dropped] == [(1, "too_long")]
