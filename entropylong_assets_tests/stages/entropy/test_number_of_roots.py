"""A wished number of roots: new shards change no earlier one, and none is never silent."""

from __future__ import annotations

import json
from pathlib import Path

from entropylong_assets.project import make_project, open_store
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.checks import run_checks
from entropylong_assets.stages.corpus.shards import load_plan, plan_shards, save_plan
from entropylong_assets.stages.corpus.stage import CORPUS_DOCUMENTS_STAGE
from entropylong_assets.stages.entropy.stage import ENTROPY_SCORES_STAGE
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.execution import materialize
from entropylong_assets.stages.samples.stage import LONG_CONTEXT_SAMPLES_STAGE
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.stage import Partition, Stage
from entropylong_assets.stages.versioning import stale_reason
from entropylong_assets.storage.tables import WHOLE
from entropylong_assets_tests.tiny_world import document, tiny_settings


def write_documents(file: Path, first: int, count: int) -> None:
    file.parent.mkdir(exist_ok=True)
    texts = [document(first + i) for i in range(count)]
    file.write_text("".join(json.dumps({"text": text, "id": "x"}) + "\n" for text in texts))


def scan(settings: Settings) -> list[str]:
    store = open_store(settings)
    plan = plan_shards(settings.corpus, load_plan(store).shards)
    save_plan(store, plan)
    return [shard.key for shard in plan.shards]


def partition_of(settings: Settings, stage: Stage, shard: str) -> Partition:
    of = settings.corpus if stage.scope == "corpus" else settings
    return Partition(of, open_store(settings), shard)


def test_a_new_shard_leaves_the_roots_of_earlier_ones(
    tmp_path: Path, tiny_models: tuple[str, str]
) -> None:
    roots = {"number": 12, "fraction": None, "min_tokens": 2, "max_tokens": 900}
    settings = tiny_settings(tmp_path / "corpus", tmp_path / "data", tiny_models, roots=roots)
    write_documents(tmp_path / "corpus" / "a.jsonl", 0, 24)
    (first,) = scan(settings)
    for stage in (CORPUS_DOCUMENTS_STAGE, ENTROPY_SCORES_STAGE):
        materialize(stage, partition_of(settings, stage, first))
    before = open_store(settings).summary(ENTROPY_SCORES, first)
    assert 6 <= before.drawn <= 18
    write_documents(tmp_path / "corpus" / "b.jsonl", 100, 24)
    _, second = scan(settings)
    assert (
        stale_reason(ENTROPY_SCORES_STAGE, partition_of(settings, ENTROPY_SCORES_STAGE, first))
        is None
    )
    for stage in (CORPUS_DOCUMENTS_STAGE, ENTROPY_SCORES_STAGE):
        materialize(stage, partition_of(settings, stage, second))
    after = open_store(settings).summary(ENTROPY_SCORES, second)
    assert 1 <= after.drawn <= 12, "half the share, as the corpus is twice as large"
    results = run_checks(ENTROPY_SCORES_STAGE, partition_of(settings, ENTROPY_SCORES_STAGE, second))
    assert all(result.passed for result in results)


def test_a_shard_without_roots_warns_and_goes_on(
    tmp_path: Path, tiny_models: tuple[str, str]
) -> None:
    roots = {"number": 5, "fraction": None, "min_tokens": 900, "max_tokens": 950}
    settings = tiny_settings(tmp_path / "corpus", tmp_path / "data", tiny_models, roots=roots)
    write_documents(tmp_path / "corpus" / "a.jsonl", 0, 8)
    (shard,) = scan(settings)
    warnings: list[str] = []
    for stage in (*LONG_CONTEXT_SAMPLES_STAGE.upstream(), LONG_CONTEXT_SAMPLES_STAGE):
        partition = partition_of(settings, stage, shard if stage.partitioned else WHOLE)
        materialization = materialize(stage, partition, warn=warnings.append)
        failed = [r.check.name for r in run_checks(stage, partition) if not r.passed]
        if stage is ENTROPY_SCORES_STAGE:
            assert failed == ["has_roots"]
            assert materialization.metadata["warning"] in warnings[-1]
        else:
            assert failed == [], stage.name
    (line,) = [w for w in warnings if "no root" in w]
    assert "too_short_for_root" in line
    assert "roots.min_tokens is 900" in line
    assert open_store(settings).summary(LONG_CONTEXT_SAMPLES, shard).samples == 0


def test_the_profile_of_the_paper_keeps_its_share() -> None:
    paper = make_project({"profile": "paper"}).dataset.roots
    assert (paper.fraction, paper.wished_number) == (0.0001, None)
    ours = make_project({}).dataset.roots
    assert ours.wished_number == 100
    changed = make_project({"profile": "paper", "roots": {"number": 7}}).dataset.roots
    assert changed.wished_number == 7
