"""The stage as it is declared: what determines it, what it publishes, and its checks."""

from __future__ import annotations

from typing import Any

import pytest

from entropylong_assets.project import open_store
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.checks import run_checks
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.execution import materialize
from entropylong_assets.stages.stage import Partition
from entropylong_assets.stages.verification.stage import VERIFIED_DEPENDENCIES_STAGE as STAGE
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.stages.versioning import stale_reason
from entropylong_assets.storage.manifest import TableError
from entropylong_assets_tests.conftest import World
from entropylong_assets_tests.setting_reads import computation_reads, leaves
from entropylong_assets_tests.stages.verification.one_shard import copy_of, with_verification

WITHOUT_EFFECT = {
    "scoring.device": "a way to compute",
    "scoring.pack_tokens": "a way to compute",
    "scoring.trust_remote_code": "whether the model is refused",
}


@pytest.fixture(scope="module")
def settings(world: World, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings over a copy of the world."""
    return copy_of(world, tmp_path_factory.mktemp("copy") / "data")


VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "the paper's": {"rule": "plain", "controls": 0, "require_surprisal_drop": False},
    "one rule": {"rule": "plain", "compared_rules": ("plain",)},
    "no evidence": {"rule": "plain", "compared_rules": (), "evidence": False},
    "budget": {"max_contexts_per_root": 1, "max_forward_tokens_per_root": 3000},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_determined_by_lists_what_the_computation_reads(
    world: World, settings: Settings, variant: str
) -> None:
    settings = with_verification(settings, **VARIANTS[variant])
    partition = Partition(settings, open_store(settings), world.shards[0])
    reads = computation_reads(STAGE, partition)
    determining = leaves(settings, STAGE.determined_by(settings))
    assert determining - reads == set(), "a change makes verdicts stale for nothing"
    assert reads - determining == WITHOUT_EFFECT.keys(), "a change goes unnoticed"
    failed = {r.check.name for r in run_checks(STAGE, partition) if not r.passed}
    assert failed == set()


def test_a_shard_is_stale_after_a_change_of_the_rule_or_of_a_setting_that_it_reads(
    world: World, settings: Settings
) -> None:
    store, shard = open_store(settings), world.shards[0]
    plain = with_verification(settings, rule="plain", compared_rules=("plain",))
    materialize(STAGE, Partition(plain, store, shard))
    for change, reason in (
        ({}, None),
        ({"max_false_acceptance": 0.5}, None),
        ({"require_surprisal_drop": False}, None),
        ({"epsilon": 0.3}, "setting verification.epsilon has changed"),
        ({"compared_rules": ()}, "setting verification.compared_rules has changed"),
        ({"rule": "calibrated"}, "setting verification.require_surprisal_drop has changed"),
    ):
        changed = Partition(with_verification(plain, **change), store, shard)
        assert stale_reason(STAGE, changed) == reason


def test_scores_of_another_model_are_refused(world: World, settings: Settings) -> None:
    store, shard = open_store(settings), world.shards[1]
    roots = store.read(ENTROPY_SCORES, shard, "roots")
    summary = store.summary(ENTROPY_SCORES, shard).model_dump()
    with store.write(ENTROPY_SCORES, shard, fingerprint="f") as writer:
        writer.append("roots", roots)
        writer.summary = summary | {"model": "another@1:float32"}
    before = store.require(VERIFIED_DEPENDENCIES, shard)
    with pytest.raises(TableError, match=r"scored by another@1:float32, but scoring\.model is"):
        materialize(STAGE, Partition(settings, store, shard))
    assert store.require(VERIFIED_DEPENDENCIES, shard) == before


def test_metadata_shows_verdicts_scoring_and_the_strongest_pairs(
    world: World, settings: Settings
) -> None:
    store, shard = open_store(settings), world.shards[0]
    done = materialize(STAGE, Partition(settings, store, shard))
    summary = store.summary(VERIFIED_DEPENDENCIES, shard)
    assert done.metadata["acceptance rate"] == summary.accepted / summary.pairs_scored
    assert done.metadata["verdicts"] == summary.verdicts
    scoring: Any = done.metadata["scoring"]
    assert scoring["resumed_batches"] == 0
    assert scoring["pairs_saved_by_sharing"] == summary.pairs_scored - summary.contexts_scored
    best: Any = done.metadata["preview"]
    assert best["gain"].is_sorted(descending=True)
    assert len(best) == min(5, summary.accepted)
    assert str(done.metadata["gains"]).startswith("![histogram")
    assert done.unit == "tokens"
    assert summary.forward_tokens > 0
