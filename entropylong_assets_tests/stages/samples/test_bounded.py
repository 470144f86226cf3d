"""Samples of a shard are made from a few roots at a time, without any difference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from entropylong_assets.stages.samples import shard_packing as module
from entropylong_assets.stages.samples.shard_inputs import ShardTables
from entropylong_assets_tests.stages.samples.worlds import make_world, run, settings_for

RECIPES = (None, "entropylong", "calibrated", "no_verify", "nextlong", "policylong")


@pytest.mark.parametrize("recipe", RECIPES)
def test_pack_shard_is_the_same_however_many_roots_are_read_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Any
) -> None:
    world = make_world(5, n_roots=30, n_chunks=80)
    settings = settings_for(160, recipe=recipe)
    read: list[int] = []
    of = ShardTables.of

    def counted(self: ShardTables, root_ids: Sequence[str]) -> Any:
        read.append(len(root_ids))
        return of(self, root_ids)

    monkeypatch.setattr(ShardTables, "of", counted)
    whole = run(str(tmp_path / "whole"), world.frames(), settings)
    assert read[0] == 30
    most = max(len({s["root_id"] for s in whole.segments if s["sample_id"] == i} - {None})
               for i in {s["sample_id"] for s in whole.segments})  # fmt: skip
    assert whole.summary["samples"] > 3
    for size in (1, 4):
        read.clear()
        monkeypatch.setattr(module, "ROOTS_PER_READ", size)
        parts = run(str(tmp_path / f"{size}"), world.frames(), settings)
        assert max(read) <= max(size, most)
        assert parts.summary == whole.summary
        assert parts.data_version == whole.data_version
