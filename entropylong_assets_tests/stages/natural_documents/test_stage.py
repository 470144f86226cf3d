"""The stage `natural_documents` on a tiny corpus with long documents.

The failures guarded against: a root or a near-duplicate becomes a natural document; a sample's
tokens are not those of its document; counts that do not add up; checks that fail on sound tables.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from entropylong_assets.pipeline import STAGES
from entropylong_assets.project import open_store
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.checks import run_checks
from entropylong_assets.stages.corpus.shards import plan_shards, save_plan
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.entropy.model import load_scoring_model, score_plainly
from entropylong_assets.stages.entropy.scoring import ScoringRequest
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.execution import materialize
from entropylong_assets.stages.natural_documents.stage import NATURAL_DOCUMENTS_STAGE
from entropylong_assets.stages.natural_documents.tables import NATURAL_DOCUMENTS
from entropylong_assets.stages.stage import Partition
from entropylong_assets_tests.tiny_world import document, tiny_settings

SHARD = "tiny-00000"
SAMPLE = 384
NATURAL = {"keep": 0.5, "min_tokens": 380, "short_tokens": 96, "max_gzip_ratio": 0.9}


def long_document(seed: int, parts: int) -> str:
    return "\n\n".join(document(1000 * seed + part) for part in range(parts))


def texts() -> list[str]:
    long = [long_document(seed, 3 + seed % 4) for seed in range(8)]
    near = long[1].replace("river", "canal", 1)
    return [*long, *(document(seed) for seed in range(20, 26)), near]


def build(folder: Path, models: tuple[str, str], **natural: Any) -> Partition:
    """The partition, whose inputs are materialized."""
    (folder / "corpus").mkdir()
    lines = [json.dumps({"text": text, "id": f"d{i}"}) for i, text in enumerate(texts())]
    (folder / "corpus" / "a.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings: Settings = tiny_settings(
        folder / "corpus",
        folder / "data",
        models,
        near_duplicates={"threshold": 0.7},
        roots={"fraction": 0.5, "min_tokens": 20, "max_tokens": 383},
        samples={"tokens": SAMPLE},
        natural=natural,
    )
    store = open_store(settings.corpus)
    save_plan(store, plan_shards(settings.corpus))
    partition = Partition(settings, open_store(settings), SHARD)
    wanted = {stage.name for stage in NATURAL_DOCUMENTS_STAGE.upstream()}
    for stage in STAGES:
        if stage.name in wanted:
            owner = settings.corpus if stage.scope == "corpus" else settings
            at = SHARD if stage.partitioned else "all"
            own = Partition(owner, open_store(owner), at)
            materialize(stage, own)
            assert all(result.passed for result in run_checks(stage, own) if result.check.blocking)
    return partition


@pytest.fixture(scope="module")
def partition(tmp_path_factory: pytest.TempPathFactory, tiny_models: tuple[str, str]) -> Partition:
    built = build(tmp_path_factory.mktemp("natural"), tiny_models, **NATURAL)
    materialize(NATURAL_DOCUMENTS_STAGE, built)
    return built


def read(partition: Partition, table: str) -> pl.DataFrame:
    return partition.store.read(NATURAL_DOCUMENTS, SHARD, table)


def test_checks_pass_and_counts_reconcile(partition: Partition) -> None:
    results = list(run_checks(NATURAL_DOCUMENTS_STAGE, partition))
    assert [r.check.name for r in results if not r.passed] == []
    assert len(results) == len(NATURAL_DOCUMENTS_STAGE.checks) == 4
    summary = partition.store.summary(NATURAL_DOCUMENTS, SHARD)
    documents = partition.store.read(CORPUS_DOCUMENTS, SHARD, "documents")
    assert summary.documents == len(documents)
    assert summary.short >= 6
    assert summary.dropped["near_duplicate_of_document"] == 1
    assert summary.windows >= 10
    assert 0 < summary.kept < summary.windows
    assert summary.key_tokens > summary.key_tokens_located > 0
    assert (summary.long_tokens, summary.short_tokens) == (SAMPLE, 96)


def test_samples_are_the_tokens_of_their_documents(partition: Partition) -> None:
    model = load_scoring_model(partition.settings.scoring)
    documents = partition.store.read(CORPUS_DOCUMENTS, SHARD, "documents", ["doc_id", "text"])
    by_id = dict(documents.iter_rows())
    roots = set(partition.store.read(ENTROPY_SCORES, SHARD, "roots")["root_id"])
    samples = read(partition, "samples")
    assert len(samples)
    for row in samples.iter_rows(named=True):
        (ids,) = model.tokenizer.encode([by_id[row["doc_id"]]])
        content = SAMPLE - len(model.tokenizer.bos_ids)
        expected = [*model.tokenizer.bos_ids, *ids[row["start"] : row["start"] + content]]
        assert row["input_ids"] == expected
        assert len(expected) == SAMPLE
        assert row["doc_id"] not in roots


def test_windows_and_evidence_have_the_scores_of_a_plain_pass(partition: Partition) -> None:
    model = load_scoring_model(partition.settings.scoring)
    evidence = read(partition, "evidence")
    windows = {row["window_id"]: row for row in read(partition, "windows").iter_rows(named=True)}
    for row in read(partition, "samples").iter_rows(named=True):
        ids = np.array(row["input_ids"], np.int64)
        long = score_plainly(model, ScoringRequest(ids, np.arange(1, SAMPLE))).surprisal_N
        assert windows[row["window_id"]]["surprisal_long"] == pytest.approx(long.mean(), abs=1e-4)
        for evidence_row in (
            evidence.filter(window_id=row["window_id"]).head(5).iter_rows(named=True)
        ):
            position = evidence_row["position"]
            assert evidence_row["surprisal_long"] == pytest.approx(long[position - 1], abs=1e-3)
            near = np.concatenate([ids[:1], ids[evidence_row["short_start"] : position + 1]])
            assert len(near) <= 96
            short = score_plainly(model, ScoringRequest(near, np.array([len(near) - 1])))
            assert evidence_row["surprisal_short"] == pytest.approx(short.surprisal_N[0], abs=1e-3)


def test_a_second_run_writes_the_same_rows(partition: Partition) -> None:
    before = {name: read(partition, name) for name in NATURAL_DOCUMENTS.schemas}
    materialize(NATURAL_DOCUMENTS_STAGE, partition)
    for name, table in before.items():
        assert read(partition, name).equals(table)


def test_long_window_is_what_the_model_reads(tmp_path: Path, tiny_models: tuple[str, str]) -> None:
    partition = build(
        tmp_path, tiny_models, **(NATURAL | {"min_tokens": None, "short_tokens": None})
    )
    scoring = partition.settings.scoring.model_copy(update={"max_forward_tokens": 200})
    settings = partition.settings.model_copy(update={"scoring": scoring})
    shorter = Partition(settings, partition.store, SHARD)
    result = materialize(NATURAL_DOCUMENTS_STAGE, shorter)
    summary = partition.store.summary(NATURAL_DOCUMENTS, SHARD)
    assert result is not None
    assert (summary.long_tokens, summary.short_tokens) == (200, 50)
    assert set(read(shorter, "samples")["input_ids"].list.len()) == {SAMPLE}
    assert [
        r.check.name for r in run_checks(NATURAL_DOCUMENTS_STAGE, shorter) if not r.passed
    ] == []


def test_without_a_share_nothing_is_read(tmp_path: Path, tiny_models: tuple[str, str]) -> None:
    partition = build(tmp_path, tiny_models)
    materialize(NATURAL_DOCUMENTS_STAGE, partition)
    summary = partition.store.summary(NATURAL_DOCUMENTS, SHARD)
    assert summary.documents == summary.windows == summary.forward_tokens == 0
    assert all(result.passed for result in run_checks(NATURAL_DOCUMENTS_STAGE, partition))
