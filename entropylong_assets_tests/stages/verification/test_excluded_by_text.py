"""Contexts that all evaluated rules reject because of their text alone are not scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from entropylong_assets.project import open_store
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.checks import run_checks
from entropylong_assets.stages.execution import materialize
from entropylong_assets.stages.stage import Partition
from entropylong_assets.stages.verification.gain import possible_pairs
from entropylong_assets.stages.verification.settings import VerificationSettings
from entropylong_assets.stages.verification.stage import VERIFIED_DEPENDENCIES_STAGE
from entropylong_assets.storage.tables import TableStore
from entropylong_assets_tests.conftest import World
from entropylong_assets_tests.stages.verification.one_shard import (
    copy_of,
    verify,
    with_verification,
)

KEY = ["root_id", "anchor", "chunk_id"]
SCORES = ("entropy_context", "surprisal_context", "entropy_control", "surprisal_control")


@pytest.fixture
def loose(world: World) -> Settings:
    """Rule `genuine`, by which only the word in the context counts: this corpus has few words."""
    return with_verification(
        world.settings,
        rule="genuine",
        compared_rules=(),
        min_calibrated_gain=-10.0,
        min_surprisal_gain=-10.0,
        max_phrase_documents=10**6,
        max_pair_documents=10**6,
    )


@pytest.mark.parametrize(
    ("rules", "all_are_possible"),
    [
        (("genuine", ()), False),
        (("genuine", ("plain",)), True),
        (("calibrated", ("genuine",)), True),
    ],
)
def test_only_rules_that_read_the_text_exclude(
    rules: tuple[str, tuple[str, ...]], all_are_possible: bool
) -> None:
    settings = VerificationSettings(rule=rules[0], compared_rules=rules[1])
    assert (possible_pairs(settings) is None) == all_are_possible


def test_verdicts_are_those_of_scoring_everything(
    world: World, loose: Settings, tmp_path: Path
) -> None:
    everything = with_verification(loose, compared_rules=("plain",))
    saved = 0
    for shard in world.shards:
        few = verify(loose, shard, TableStore(str(tmp_path / "few")))
        whole = verify(everything, shard, TableStore(str(tmp_path / "all")))
        accepted = [outcome.pairs.filter("accepted").sort(KEY) for outcome in (few, whole)]
        assert len(accepted[0])
        assert accepted[0].select(KEY).equals(accepted[1].select(KEY))
        for name in SCORES:  # other passes share a sequence, which changes the last bits
            np.testing.assert_allclose(accepted[0][name], accepted[1][name], rtol=1e-5)
        excluded = few.pairs.filter(verdict="excluded_by_text")
        assert not excluded["has_word"].fill_null(False).any()
        assert excluded["entropy_context"].null_count() == len(excluded)
        others = few.pairs.join(excluded, KEY, "anti").filter(pl.col("entropy_context").is_null())
        assert set(others["verdict"]) <= {"near_duplicate", "too_long_for_model"}
        saved += whole.verified.forward_tokens - few.verified.forward_tokens
    assert saved > 0


def test_stored_scores_of_fewer_contexts_are_completed(
    world: World, loose: Settings, tmp_path: Path
) -> None:
    """Another rule needs more contexts than were scored: the stored ones are taken, the rest is
    scored. And a pair that should have been scored fails the check."""
    settings = copy_of(world, tmp_path / "data")
    few = settings.model_copy(update={"verification": loose.verification})
    more = with_verification(few, compared_rules=("plain",))
    shard = world.shards[0]
    store = open_store(few)
    stage = VERIFIED_DEPENDENCIES_STAGE
    materialize(stage, Partition(few, store, shard))
    assert all(outcome.passed for outcome in run_checks(stage, Partition(few, store, shard)))
    wrong = run_checks(stage, Partition(more, store, shard))
    assert [o.check.name for o in wrong if not o.passed] == ["verdicts_recomputed"]
    lines: list[str] = []
    materialize(stage, Partition(more, store, shard), log=lines.append)
    assert any("are taken from it" in line for line in lines)
    fresh = verify(more, shard, TableStore(str(tmp_path / "fresh")))
    stored = store.read(stage.tables, shard, "pairs")
    assert stored.select(KEY, "verdict", "accepted_by").equals(
        fresh.pairs.select(KEY, "verdict", "accepted_by")
    )
    for name in SCORES:
        np.testing.assert_allclose(stored[name], fresh.pairs[name], rtol=1e-5)
