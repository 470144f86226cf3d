"""Figures of a materialization as the UI shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg

from entropylong_assets_tests.stage_names import path_of

if TYPE_CHECKING:
    from entropylong_assets_tests.conftest import World


def test_materialization_shows_every_number_of_its_summary(world: World) -> None:
    """The failure: a figure by rule, two mappings deep, was not shown."""
    key, shard = dg.AssetKey(path_of("verified_dependencies")), world.shards[0]
    [record] = world.instance.fetch_materializations(
        dg.AssetRecordsFilter(key, asset_partitions=[shard]), limit=1
    ).records
    assert record.asset_materialization is not None
    shown = {k: v.value for k, v in record.asset_materialization.metadata.items()}
    rate = shown["false_acceptance: calibrated: rate"]
    low, high = (shown[f"false_acceptance: calibrated: {end}"] for end in ("low", "high"))
    assert 0 <= low <= rate <= high < shown["false_acceptance: plain: high"] <= 1
    assert shown["false_acceptance: calibrated: is_rough"] is True, "few roots, and not marked"
    assert 1 <= shown["diversity: roots: effective"] <= shown["diversity: roots: number"]
    assert shown["diversity: contexts: number"] <= shown["accepted"]
    assert shown["verdicts: accepted"] == shown["accepted"] > 0
