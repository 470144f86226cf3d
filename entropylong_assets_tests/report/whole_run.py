"""A corpus of documents of very different lengths in sorted files, and counts of a run over it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from entropylong_assets.project import open_store
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.checks import run_checks
from entropylong_assets.stages.corpus.shards import ShardPlan, plan_shards, save_plan
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.execution import materialize
from entropylong_assets.stages.stage import Partition
from entropylong_assets.stages.verification.stage import VERIFIED_DEPENDENCIES_STAGE
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage.tables import WHOLE
from entropylong_assets_tests.tiny_world import document


class Actual(NamedTuple):
    """Counts of a whole run."""

    roots: int
    anchors: int
    passes: int
    forward_tokens: int
    dependencies: int


def write_sorted_corpus(folder: Path, files: int, documents: int) -> None:
    """Files of documents of 3 to 40 sentences, the shortest first, each file longer than the one
    before: the first rows are the shortest of all."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(5)
    lengths = np.sort(np.exp(draw.uniform(np.log(3), np.log(40), files * documents)).astype(int))
    for number in range(files):
        texts = [
            document(1000 * number + i, max(3, int(n)))
            for i, n in enumerate(lengths[number * documents : (number + 1) * documents])
        ]
        lines = [json.dumps({"text": text}) for text in texts]
        (folder / f"{number}.jsonl").write_text("\n".join(lines) + "\n")


def plan_of(settings: Settings) -> ShardPlan:
    plan = plan_shards(settings.corpus)
    save_plan(open_store(settings), plan)
    return plan


def run_whole(settings: Settings, plan: ShardPlan) -> Actual:
    """Run all stages up to the verification, and count."""
    store = open_store(settings)
    for stage in (*VERIFIED_DEPENDENCIES_STAGE.upstream(), VERIFIED_DEPENDENCIES_STAGE):
        of = settings.corpus if stage.scope == "corpus" else settings
        for shard in [s.key for s in plan.shards] if stage.partitioned else [WHOLE]:
            partition = replace(Partition(of, store), shard=shard)
            materialize(stage, partition)
            assert all(r.passed for r in run_checks(stage, partition, set(stage.blocking_checks)))
    scores = [store.summary(ENTROPY_SCORES, shard.key) for shard in plan.shards]
    verified = [store.summary(VERIFIED_DEPENDENCIES, shard.key) for shard in plan.shards]
    return Actual(
        sum(s.roots for s in scores),
        sum(s.anchors for s in scores),
        sum(v.contexts_scored for v in verified),
        sum(s.forward_tokens for s in scores)
        + sum(v.forward_tokens + v.evidence_tokens for v in verified),
        sum(v.accepted for v in verified),
    )
