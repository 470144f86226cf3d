"""The planted corpus states each fact once; its measures are counted by hand."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from entropylong_assets.audits.planted import (
    count_by_form,
    measure,
    scored_pairs,
    shortfall,
    values_of,
)
from entropylong_assets.audits.planted_facts import Fact, plant, write_corpus
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.schemas import TableSet
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.report.runs import byte_tokenizer, doc_id


def test_each_fact_is_stated_once_and_needed_elsewhere(tmp_path: Path) -> None:
    facts = plant(108, 7)
    assert facts == plant(108, 7)
    assert facts != plant(108, 8)
    write_corpus(facts, str(tmp_path / "facts.jsonl"))
    texts = [
        json.loads(line)["text"]
        for line in (tmp_path / "facts.jsonl").read_text().split("\n")
        if line
    ]
    assert len(texts) == 108 * 4 == len(set(texts))
    for fact in facts:
        holding = [text for text in texts if fact.value in text]
        assert sorted(holding) == sorted([fact.needing, fact.stating])
        start, end = fact.span
        assert fact.needing[start:end] == fact.value
        assert fact.needing.count(fact.value) == 1
        assert misses(fact, facts) == set()
        assert not any(fact.value in decoy for decoy in fact.decoys)


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\b[A-Z][a-z]+", text))


def misses(fact: Fact, facts: list[Fact]) -> set[str]:
    """The place that only the two documents of this fact name, if its decoy does not name it."""
    elsewhere = {
        n for f in facts if f.value != fact.value for n in names_in(f.needing) | names_in(f.stating)
    }
    place = (names_in(fact.needing) & names_in(fact.stating)) - elsewhere - names_in(fact.value)
    assert len(place) == 1, "the two documents don't share one place"
    return place - names_in(fact.decoys[0])


def test_a_decoy_about_another_place_is_noticed() -> None:
    """Decoys about another place would be too easy to reject, and the measured precision too high.

    Every template begins with a capital letter, so any decoy shares a title-case word.
    """
    facts = plant(24, 7)
    for number, fact in enumerate(facts):
        of_its_kind = facts[(number + 12) % len(facts)].decoys  # about another place
        assert len(misses(replace(fact, decoys=of_its_kind), facts)) == 1
        (place,) = misses(replace(fact, decoys=("",)), facts)
        without = fact.decoys[0].replace(place, "Elsewhere")
        assert misses(replace(fact, decoys=(without,)), facts) == {place}


def test_write_corpus_leaves_equal_content_as_it_is(tmp_path: Path) -> None:
    """Otherwise `make evidence` would materialize the planted corpus at every call."""
    file = tmp_path / "facts.jsonl"
    write_corpus(plant(2, 7), str(file))
    os.utime(file, ns=(1, 1))
    write_corpus(plant(2, 7), str(file))
    assert file.stat().st_mtime_ns == 1
    write_corpus(plant(2, 8), str(file))
    assert file.stat().st_mtime_ns > 1


def write_table(
    store: TableStore, tables: TableSet[Any], table: str, rows: list[dict[str, Any]]
) -> None:
    with store.write(tables, "s", fingerprint="f") as writer:
        writer.append(table, rows)


def test_recall_and_precision_by_hand(tmp_path: Path) -> None:
    """One of two facts is found: the value of the other is not above τ.

    Pairs at other anchors are counted separately, and anchors below the given α are left out.
    """
    facts, store, tokenizer = plant(2, 3), TableStore(str(tmp_path)), byte_tokenizer()
    texts = [t for f in facts for t in (f.needing, f.stating, *f.decoys)]
    ids = {t: doc_id(t) for t in texts}
    documents = [
        {"doc_id": ids[t], "text": t, "source": "s", "file": "f", "row": i, "external_id": None}
        | {"license": "x", "n_chars": len(t)}
        for i, t in enumerate(texts)
    ]
    write_table(store, CORPUS_DOCUMENTS, "documents", documents)
    roots, pairs = [], []
    for number, fact in enumerate(facts):
        tokens = tokenizer.encode([fact.needing])[0]
        entropies = [0.5] * len(tokens)
        value = fact.span[0]
        # The first fact's value is above τ = 2 and 1.5, the second's above 1.5 alone.
        entropies[value], entropies[3] = (2.5, 3.0) if number == 0 else (1.75, 3.0)
        roots.append(
            {"root_id": ids[fact.needing], "token_ids": tokens, "anchors": [3, value]}
            | {"entropies": entropies, "surprisals": [1.0] * len(tokens)}
            | {"mean": 0.0, "std": 1.0, "threshold": 1.5, "surprisal_mean": 1.0}
            | {"surprisal_std": 0.0, "by_surprisal": []}
        )
        for at, rank, text, accepted_by in (
            (value, 1, fact.stating, ["plain", "calibrated"]),
            (value, 2, fact.decoys[0], ["plain"]),
            (3, 1, fact.stating, ["plain"]),
        ):
            pairs.append(
                {"root_id": ids[fact.needing], "anchor": at, "rank": rank}
                | {"chunk_id": f"{ids[text]}-00000", "similarity": 0.5, "entropy": entropies[at]}
                | {"entropy_context": 0.1, "entropy_control": 1.0, "surprisal": 1.0}
                | {"surprisal_context": 0.1, "surprisal_control": 1.0, "gain": 0.9}
                | {"calibrated_gain": 0.9, "verdict": "accepted"}
                | {"accepted_by": accepted_by, "accepted": "calibrated" in accepted_by}
            )
    write_table(store, ENTROPY_SCORES, "roots", roots)
    write_table(store, VERIFIED_DEPENDENCIES, "pairs", pairs)
    values = values_of(store, ["s"], tokenizer, facts)
    assert shortfall(values, 2.0) == pytest.approx((-0.5 + 0.25) / 2)

    scored = scored_pairs(store, ["s"], facts, values)

    def counts(alpha: float, name: str, rule: str = "") -> tuple[int, int]:
        rows = measure(scored, values, alpha, ["plain", "calibrated"])
        row = next(r for r in rows if r["rule"] == rule and r["measure"].startswith(name))
        assert row["alpha"] == alpha
        return row["passed"], row["total"]

    for alpha, facts_found in ((2.0, 1), (1.5, 2)):
        assert counts(alpha, "facts whose value contains an anchor") == (facts_found, 2)
        assert counts(alpha, "facts whose statement was retrieved") == (facts_found, 2)
        for rule in ("plain", "calibrated"):
            assert counts(alpha, "recall", rule) == (facts_found, 2)
        assert counts(alpha, "precision", "plain") == (facts_found, 2 * facts_found)
        assert counts(alpha, "precision", "calibrated") == (facts_found, facts_found)
        assert counts(alpha, "decoys", "plain") == (facts_found, facts_found)
        assert counts(alpha, "decoys", "calibrated") == (0, facts_found)
        assert counts(alpha, "pairs accepted at other anchors", "plain") == (2, 2)
        assert counts(alpha, "pairs accepted at other anchors", "calibrated") == (0, 2)

    forms = count_by_form(scored, values, 2.0, ["plain", "calibrated"])
    assert forms.columns == ["form", "facts", "anchor", "retrieved", "plain", "calibrated"]
    assert forms.rows() == [("capital", 1, 1, 1, 1, 1), ("ship", 1, 0, 0, 0, 0)]


def test_every_form_is_planted_as_often() -> None:
    """Otherwise the most common form would dominate the figures for all facts."""
    by_form = Counter(fact.form for fact in plant(108, 5))
    assert len(by_form) == 12
    assert set(by_form.values()) == {9}


def test_no_two_documents_share_prose() -> None:
    """Shared prose would be a dependency that was not planted."""
    facts = plant(108, 5)
    sentences = [part for fact in facts for part in fact.needing.split(". ")]
    plain = [part for part in sentences if not any(fact.value in part for fact in facts)]
    assert len(plain) == len(set(plain)) > 600
    with pytest.raises(ValueError, match="prose for 118"):
        plant(119, 5)
