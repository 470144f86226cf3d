"""Conditions of our own, evaluated by Dagster on an instance."""

from __future__ import annotations

import dagster as dg
import pytest

from entropylong_assets.orchestration.automation import StillMissing

SHARDS = dg.StaticPartitionsDefinition(["s-00000", "s-00001", "s-00002"])
MISSING = dg.AutomationCondition.missing()


class RunEnds(dg.AutomationCondition[dg.AssetKey]):
    """True; and a shard's run ends while the tick is being evaluated."""

    @property
    def name(self) -> str:
        return "run_ends"

    def evaluate(
        self, context: dg.AutomationContext[dg.AssetKey]
    ) -> dg.AutomationResult[dg.AssetKey]:
        view = context.asset_graph_view
        view.instance.report_runless_asset_event(
            dg.AssetMaterialization(context.key, partition="s-00001")
        )
        return dg.AutomationResult(context, context.candidate_subset)


@pytest.mark.parametrize(
    ("condition", "asked"),
    [
        (MISSING & RunEnds(), {"s-00001", "s-00002"}),  # the race is real
        (MISSING & RunEnds() & StillMissing(), {"s-00002"}),
    ],
)
def test_shard_made_during_the_tick_is_not_requested(
    condition: dg.AutomationCondition, asked: set[str]
) -> None:
    @dg.asset(partitions_def=SHARDS, automation_condition=condition)
    def thing() -> None: ...

    with dg.DagsterInstance.ephemeral() as instance:
        instance.report_runless_asset_event(dg.AssetMaterialization("thing", partition="s-00000"))
        result = dg.evaluate_automation_conditions(defs=[thing], instance=instance)
        assert result.get_requested_partitions(dg.AssetKey("thing")) == asked
