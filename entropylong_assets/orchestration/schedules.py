"""Sensors and schedules. All are off until someone switches them on under Automation."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

import dagster as dg

from entropylong_assets.orchestration.conditions import index_behind, left_out
from entropylong_assets.orchestration.health import blocking_checks, unhealthy_shards
from entropylong_assets.orchestration.jobs import index, ingest
from entropylong_assets.orchestration.partitions import PIPELINE, corpus_shard
from entropylong_assets.orchestration.resources import Pipeline
from entropylong_assets.orchestration.scanning import find_gaps, register, scan
from entropylong_assets.stages.corpus.shards import load_plan

FILES_A_TICK = 5
"""New files that the sensor looks into at once; the rest comes with its next ticks. The daemon
creates the runs of a tick one after another, and no other sensor ticks until it is through."""

FILES_A_DAY = 2_000
"""The same for the daily schedule."""

SECONDS_BETWEEN_TICKS = int(os.environ.get("ENTROPYLONG_TICK_SECONDS", "30"))
"""Of both sensors."""


@dg.sensor(
    job=ingest,
    minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
    description=(
        f"Looks at the sources every {SECONDS_BETWEEN_TICKS} seconds (ENTROPYLONG_TICK_SECONDS). "
        "Registers a partition for each new shard and starts `ingest` for it; starts `ingest` "
        "again for shards whose files have changed. Says which files have changed or are gone. "
        "Starts nothing for shards that are known and unchanged."
    ),
)
def new_files(
    context: dg.SensorEvaluationContext, pipeline: dg.ResourceParam[Pipeline]
) -> dg.SensorResult:
    found = scan(pipeline.settings, context.instance, FILES_A_TICK)
    context.log.info(found.told)
    if not found.requests:
        return dg.SensorResult(skip_reason=found.told)
    return dg.SensorResult(
        run_requests=found.requests,
        dynamic_partitions_requests=[corpus_shard.build_add_request(list(found.unregistered))],
    )


@dg.schedule(
    job=ingest,
    cron_schedule="0 3 * * *",
    description=(
        "The same scan of the sources as the sensor `new_files`, once a day at 3:00 UTC, for "
        "sources that are slow or costly to list. Starts `ingest` for new and changed shards."
    ),
)
def daily_scan(
    context: dg.ScheduleEvaluationContext, pipeline: dg.ResourceParam[Pipeline]
) -> list[dg.RunRequest] | dg.SkipReason:
    found = scan(pipeline.settings, context.instance, FILES_A_DAY)
    context.log.info(found.told)
    register(found, context.instance)
    return found.requests or dg.SkipReason(found.told)


def make_carrier(assets: dg.AssetSelection) -> dg.AutomationConditionSensorDefinition:
    """The sensor that evaluates the automation conditions of all assets."""
    return dg.AutomationConditionSensorDefinition(
        "carry_new_shards",
        target=assets,
        # The conditions look into our own tables, which the daemon alone can't.
        use_user_code_server=True,
        # A run for each shard, so that one that fails is retried alone.
        emit_backfills=False,
        minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
        description=(
            "Carries shards on to samples: starts each stage for a shard once the one before is "
            "there and its blocking checks have passed, `embedding_index` once for a batch of "
            "shards, then `training_dataset` with its report. Starts nothing for shards that have "
            "all stages, unless their documents were made anew, and nothing because a setting "
            "changed."
        ),
        run_tags={"entropylong/started_by": "carry_new_shards"},
    )


def _unhealthy(
    instance: dg.DagsterInstance,
    checks: Iterable[dg.AssetChecksDefinition],
    shards: list[str],
) -> dict[str, Mapping[str, str]]:
    """By asset, the shards that have not passed its blocking checks, and why."""
    gates: dict[str, list[dg.AssetCheckKey]] = {asset: [] for asset in PIPELINE}
    for key in blocking_checks(checks):
        gates.setdefault(key.asset_key.to_user_string(), []).append(key)
    return {asset: unhealthy_shards(instance, keys, shards) for asset, keys in gates.items()}


def make_sweeps(
    checks: Iterable[dg.AssetChecksDefinition], before_index: Iterable[dg.AssetChecksDefinition]
) -> list[dg.ScheduleDefinition]:
    """Schedules that find what an automation tick has missed, from the tables themselves.

    `before_index` are the checks that decide which shards the index takes in.
    """
    checks, index_gates = list(checks), blocking_checks(before_index)

    @dg.schedule(
        job=index,
        cron_schedule="15 * * * *",
        description=(
            "Every hour: starts `index` if healthy shards are not yet in the index, or others are "
            "no longer healthy. Also takes new shards in while more keep coming, for which "
            "`carry_new_shards` would wait."
        ),
    )
    def refresh_index(
        context: dg.ScheduleEvaluationContext, pipeline: dg.ResourceParam[Pipeline]
    ) -> dg.RunRequest | dg.SkipReason:
        behind = index_behind(pipeline.store, left_out(context.instance, index_gates))
        if not behind:
            return dg.SkipReason("the index holds all healthy shards")
        context.log.info(f"not in the index as they are now: {', '.join(behind[:20])}")
        return dg.RunRequest()

    @dg.schedule(
        target=dg.AssetSelection.assets(*(a for a in PIPELINE if a != "embedding_index")),
        cron_schedule="45 * * * *",
        description=(
            "Every hour: for each registered shard that nothing runs for, starts the first stage "
            "that is missing or older than what it reads, where the checks before it have passed. "
            "Asks for each gap once: what failed waits for a retry by hand or for new input."
        ),
    )
    def fill_gaps(
        context: dg.ScheduleEvaluationContext, pipeline: dg.ResourceParam[Pipeline]
    ) -> list[dg.RunRequest] | dg.SkipReason:
        shards = [shard.key for shard in load_plan(pipeline.store).shards]
        unhealthy = _unhealthy(context.instance, checks, shards)
        gaps = find_gaps(pipeline.settings, context.instance, unhealthy)
        return [
            dg.RunRequest(
                run_key=f"{gap.shard}:{gap.asset}@{gap.versions}",
                partition_key=gap.shard,
                asset_selection=[dg.AssetKey(gap.asset)],
            )
            for gap in gaps
        ] or dg.SkipReason("no shard has a gap that can be filled now")

    return [refresh_index, fill_gaps]
