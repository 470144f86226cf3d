"""The planted corpus: what it states is stated once, and the measure counts by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from entropylong_assets.audits.planted import measure, plant, write_corpus
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.report.runs import byte_tokenizer, doc_id


def test_each_fact_is_stated_once_and_needed_elsewhere(tmp_path: Path) -> None:
    facts = plant(12, 7)
    assert facts == plant(12, 7)
    assert facts != plant(12, 8)
    write_corpus(facts, tmp_path / "facts.jsonl")
    texts = [
        json.loads(line)["text"]
        for line in (tmp_path / "facts.jsonl").read_text().split("\n")
        if line
    ]
    assert len(texts) == 12 * 4 == len(set(texts))
    for fact in facts:
        holding = [text for text in texts if fact.value in text]
        assert sorted(holding) == sorted([fact.needing, fact.stating])
        start, end = fact.span
        assert fact.needing[start:end] == fact.value
        assert fact.needing.count(fact.value) == 1
        # The decoy about the same place names it and does not state the fact.
        assert any(word in fact.decoys[0] for word in fact.stating.split() if word.istitle())


def _write(
    store: TableStore, asset: str, table: str, rows: list[dict[str, Any]], **more: Any
) -> None:
    with store.write(asset, "s", fingerprint="f") as writer:
        writer.append(table, rows)
        for name, content in more.items():
            writer.append(name, content)


def test_recall_and_precision_by_hand(tmp_path: Path) -> None:
    """Of two facts one is found: the other's value is no anchor."""
    facts, store, tokenizer = plant(2, 3), TableStore(str(tmp_path)), byte_tokenizer()
    texts = [t for f in facts for t in (f.needing, f.stating, *f.decoys)]
    ids = {t: doc_id(t) for t in texts}
    documents = [
        {"doc_id": ids[t], "text": t, "source": "s", "file": "f", "row": i, "external_id": None}
        | {"license": "x", "n_chars": len(t), "n_tokens": len(t), "is_root": t in texts[::4]}
        for i, t in enumerate(texts)
    ]
    _write(store, "corpus_documents", "documents", documents)
    roots, pairs = [], []
    for number, fact in enumerate(facts):
        tokens = tokenizer.encode([fact.needing])[0]
        at = fact.span[0] if number == 0 else 3
        roots.append(
            {"root_id": ids[fact.needing], "token_ids": tokens, "anchors": [at], "mean": 0.0}
            | {"entropies": [1.0] * len(tokens), "surprisals": [1.0] * len(tokens)}
            | {"std": 1.0, "threshold": 1.0}
        )
        for rank, (text, plain, calibrated) in enumerate(
            ((fact.stating, True, True), (fact.decoys[0], True, False)), start=1
        ):
            pairs.append(
                {"root_id": ids[fact.needing], "anchor": at, "rank": rank}
                | {"chunk_id": f"{ids[text]}-00000", "similarity": 0.5, "entropy": 1.0}
                | {"entropy_context": 0.1, "entropy_control": 1.0, "surprisal": 1.0}
                | {"surprisal_context": 0.1, "surprisal_control": 1.0, "gain": 0.9}
                | {"calibrated_gain": 0.9, "accepted_plain": plain, "verdict": "accepted"}
                | {"accepted_calibrated": calibrated, "accepted": calibrated}
            )
    _write(store, "entropy_scores", "roots", roots)
    _write(store, "verified_dependencies", "pairs", pairs)
    rows = {(r["measure"], r["rule"]): r for r in measure(store, ["s"], tokenizer, facts)}

    def counts(name: str, rule: str = "") -> tuple[int, int]:
        row = next(r for (m, u), r in rows.items() if m.startswith(name) and u == rule)
        return row["passed"], row["total"]

    assert counts("facts whose value is an anchor") == (1, 2)
    assert counts("facts whose statement was retrieved") == (1, 2)
    for rule, precision, decoys in (("plain", (1, 4), (2, 2)), ("calibrated", (1, 2), (0, 2))):
        assert counts("recall", rule) == (1, 2)
        assert counts("precision", rule) == precision
        assert counts("decoys", rule) == decoys
    assert counts("accepted pairs whose chunk", "calibrated") == (2, 2)
    assert rows["precision: accepted pairs that are true", "plain"]["rate"] == pytest.approx(0.25)
