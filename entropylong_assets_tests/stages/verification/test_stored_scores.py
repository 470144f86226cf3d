"""Another rule or ε takes the stored scores over: the same tables without a forward pass."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from entropylong_assets.project import open_store
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.stage import Partition
from entropylong_assets.stages.verification.stage import VERIFIED_DEPENDENCIES_STAGE
from entropylong_assets.stages.verification.stored_scores import StoredScores, find_scores
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.stages.versioning import determinants
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.conftest import World
from entropylong_assets_tests.stages.verification.one_shard import verify


class NoScorer:
    """Fails at the first request."""

    def score(self, requests: Sequence[Any], on_progress: Any = None) -> list[Any]:
        assert not requests, "a forward pass was asked for"
        return []


def with_verification(settings: Settings, **changes: Any) -> Settings:
    verification = settings.verification.model_copy(update=changes)
    return settings.model_copy(update={"verification": verification})


def version(store: TableStore, shard: str) -> str:
    return store.require(VERIFIED_DEPENDENCIES, shard).data_version


def test_another_epsilon_and_rule_need_no_forward_pass(world: World, tmp_path: Path) -> None:
    shard = world.shards[0]
    first = with_verification(world.settings, evidence=False)
    other = with_verification(first, epsilon=0.1, rule="plain")
    made, scored, taken = (TableStore(str(tmp_path / name)) for name in ("a", "b", "c"))
    verify(first, shard, made)
    again = verify(other, shard, scored)
    reused = verify(other, shard, taken, stored=StoredScores(made, shard), scorer=NoScorer())
    assert version(taken, shard) == version(scored, shard) != version(made, shard)
    assert reused.verified.forward_tokens == again.verified.forward_tokens > 0
    assert reused.pairs["accepted"].sum() > 0


def test_damaged_scores_are_computed_again(world: World, tmp_path: Path) -> None:
    """Materializing a damaged partition again is how it is repaired."""
    shard = world.shards[0]
    made, mended = TableStore(str(tmp_path / "a")), TableStore(str(tmp_path / "b"))
    settings = with_verification(world.settings, evidence=False)
    verify(settings, shard, made)
    path = Path(made.path(VERIFIED_DEPENDENCIES, shard, "pairs"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = bytes(64)
    path.write_bytes(content)
    verify(settings, shard, mended, stored=StoredScores(made, shard))
    assert version(mended, shard) == version(made, shard)


def wanted(settings: Settings, shard: str) -> Mapping[str, Any]:
    return determinants(
        VERIFIED_DEPENDENCIES_STAGE, Partition(settings, open_store(settings), shard)
    )


@pytest.mark.parametrize(
    ("change", "is_found"),
    [
        ({"epsilon": 0.1}, True),
        ({"rule": "plain"}, True),
        ({"max_phrase_documents": 3}, True),
        ({"evidence": False}, True),
        ({"controls": 3}, False),
        ({"screen": "bfloat16"}, False),
        ({"max_contexts_per_root": 2}, False),
        ({"max_forward_tokens_per_root": 9000}, False),
    ],
)
def test_scores_are_found_if_only_the_judgement_differs(
    world: World, change: dict[str, Any], is_found: bool
) -> None:
    shard, store = world.shards[0], open_store(world.settings)
    changed = with_verification(world.settings, **change)
    found = find_scores(store, shard, wanted(changed, shard))
    assert found == (store.dataset if is_found else None)


def test_scores_of_another_dataset_are_found(world: World, tmp_path: Path) -> None:
    """An ablation is a dataset of its own: its entropies and candidates are equal, not the same."""
    shard, store = world.shards[0], open_store(world.settings)
    shutil.copytree(world.store.root, tmp_path / "data [1]")
    copied = TableStore(str(tmp_path / "data [1]"), store.corpus, "ablation")
    asked = wanted(world.settings, shard)
    assert find_scores(copied, shard, asked) == store.dataset
    elsewhere = {**asked, "inputs": {**asked["inputs"], "entropy_scores": "0" * 16}}
    assert find_scores(copied, shard, elsewhere) is None
    assert find_scores(copied, "no-such-shard", asked) is None
