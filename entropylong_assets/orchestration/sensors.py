"""Sensors and schedules of each corpus and dataset.

All that start runs are off until a user switches them on.
"""

import os
from typing import Any

import dagster as dg

from entropylong_assets.orchestration.jobs import jobs_by_stage
from entropylong_assets.orchestration.naming import (
    asset_key,
    partition_set,
    prefixed,
)
from entropylong_assets.orchestration.readiness import (
    automated_shard_stages,
    find_gaps,
    outdated_shards,
)
from entropylong_assets.orchestration.scanning import busy_shards, register, scan
from entropylong_assets.orchestration.settings_check import build_settings_sensor
from entropylong_assets.project import Project, open_store
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.stage import Job, Partition, Stage, is_corpus
from entropylong_assets.stages.versioning import removal_fault

FILES_PER_TICK = 5
"""New files that the sensor looks into per tick; the others follow with its next ticks. The daemon
creates the runs of a tick one after another, and no other sensor ticks until it has finished."""

FILES_PER_DAY = 2_000
"""The same for the daily schedule."""

SECONDS_BETWEEN_TICKS = int(os.environ.get("ENTROPYLONG_TICK_SECONDS", "30"))
"""Minimum time between two ticks of a sensor."""


def build_sensors(project: Project, settings: Settings) -> list[dg.SensorDefinition]:
    stages = project.stages_of(settings)
    keys = [asset_key(settings, stage) for stage in stages]
    sensors: list[dg.SensorDefinition] = [
        _carrier(settings, keys),
        build_settings_sensor(settings, stages),
    ]
    if is_corpus(settings):
        sensors.append(_new_files(settings, stages))
    return sensors


def build_schedules(project: Project, settings: Settings) -> list[dg.ScheduleDefinition]:
    stages = project.stages_of(settings)
    schedules = [_fill_gaps(settings, stages)]
    if is_corpus(settings):
        schedules += [_daily_scan(settings, stages), _weekly_compact(settings)]
        whole = [stage for stage in stages if stage.automation == "per_batch"]
        jobs = jobs_by_stage(whole).items()
        schedules += [_refresh(settings, job, of, stages) for job, of in jobs]
    return schedules


def _scan_job(settings: Settings, stages: list[Stage]) -> str:
    """The job that a scan starts for new and changed shards."""
    return prefixed(settings, next(s.job.name for s in stages if s.automation == "by_scan"))


def _carrier(settings: Settings, keys: list[dg.AssetKey]) -> dg.SensorDefinition:
    return dg.AutomationConditionSensorDefinition(
        prefixed(settings, "carry_new_shards"),
        target=dg.AssetSelection.assets(*keys),
        # The conditions read our own tables, which only the code server can do.
        use_user_code_server=True,
        # A run for each shard, so that one that fails is retried alone.
        emit_backfills=False,
        minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
        description=(
            f"Carries the shards of `{settings.name}` on: starts each stage for a shard once its "
            "inputs exist and have passed their blocking checks, and stages over all shards once "
            "per batch of shards. Starts nothing for shards that have all stages, unless an input "
            "was made again, and nothing because a setting has changed."
        ),
    )


def _new_files(settings: Settings, stages: list[Stage]) -> dg.SensorDefinition:
    @dg.sensor(
        name=prefixed(settings, "new_files"),
        job_name=_scan_job(settings, stages),
        minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
        description=(
            f"Scans the sources of `{settings.name}` every {SECONDS_BETWEEN_TICKS} seconds "
            "(ENTROPYLONG_TICK_SECONDS). Registers a partition for each new shard and starts "
            "`ingest` for it; starts `ingest` again for shards whose files have changed. Reports "
            "files that have changed or are missing. Starts nothing for unchanged shards. While it "
            "is off, new files become partitions by the job `scan`, the schedule `daily_scan`, "
            "`entropylong scan` or `entropylong run` only."
        ),
    )
    def new_files(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        result = scan(settings, context.instance, FILES_PER_TICK)
        context.log.info(result.message)
        if not result.requests:
            return dg.SensorResult(skip_reason=result.message)
        partitions = dg.DynamicPartitionsDefinition(name=partition_set(settings))
        return dg.SensorResult(
            run_requests=result.requests,
            dynamic_partitions_requests=[partitions.build_add_request(list(result.unregistered))],
        )

    return new_files


def _daily_scan(settings: Settings, stages: list[Stage]) -> Any:
    @dg.schedule(
        name=prefixed(settings, "daily_scan"),
        job_name=_scan_job(settings, stages),
        cron_schedule="0 3 * * *",
        description=(
            "The same scan of the sources as the sensor `new_files`, once a day at 3:00 UTC, for "
            "sources that are slow or costly to list. Starts `ingest` for new and changed shards."
        ),
    )
    def daily_scan(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        result = scan(settings, context.instance, FILES_PER_DAY)
        context.log.info(result.message)
        register(settings, result, context.instance)
        return result.requests or dg.SkipReason(result.message)

    return daily_scan


def _weekly_compact(settings: Settings) -> dg.ScheduleDefinition:
    return dg.ScheduleDefinition(
        name=prefixed(settings, "weekly_compact"),
        job_name=prefixed(settings, "compact"),
        cron_schedule="0 4 * * 0",
        description="Every Sunday at 4:00 UTC: starts `compact`.",
    )


def _refresh(settings: Settings, job: Job, whole: list[Stage], stages: list[Stage]) -> Any:
    """A schedule for the stages of a job that are over all shards of a corpus.

    stages: all of the corpus.
    """
    names = " and ".join(stage.name for stage in whole)

    @dg.schedule(
        name=prefixed(settings, f"refresh_{job.name}"),
        job_name=prefixed(settings, job.name),
        cron_schedule="15 * * * *",
        description=(
            f"Every hour: starts `{job.name}` if eligible shards are not yet contained in {names}, "
            "or others are no longer eligible. Waits for changed shards whose stages are being "
            "made or will be requested by `fill_gaps`. Unlike `carry_new_shards`, it does not wait "
            "until no more new shards arrive."
        ),
    )
    def refresh(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        partition = Partition(settings, open_store(settings))
        outdated = {s for stage in whole for s in outdated_shards(stage, partition)}
        if not outdated:
            return dg.SkipReason(f"all eligible shards are contained in {names}")
        # What was removed from the corpus leaves the index at once.
        removed = any(removal_fault(stage, partition) for stage in whole)
        if not removed and _are_to_come(settings, stages, context.instance, outdated):
            return dg.SkipReason(f"waits for shards that are being made: {_first(outdated)}")
        context.log.info(f"present data not contained: {_first(outdated)}")
        return dg.RunRequest()

    return refresh


def _first(shards: set[str]) -> str:
    return ", ".join(sorted(shards)[:20])


def _fill_gaps(settings: Settings, stages: list[Stage]) -> Any:
    keys = [asset_key(settings, stage) for stage in automated_shard_stages(stages)]

    @dg.schedule(
        name=prefixed(settings, "fill_gaps"),
        target=dg.AssetSelection.assets(*keys),
        cron_schedule="45 * * * *",
        description=(
            "Every hour: for each registered shard without an active run, starts the first stage "
            "that is missing or older than its inputs, if the inputs have passed their checks. "
            "Requests each gap once: what failed waits for a retry by a user or for new input."
        ),
    )
    def fill_gaps(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest] | dg.SkipReason:
        instance = context.instance
        shards = _registered(settings, instance) - busy_shards(settings, instance)
        requests = _gap_requests(settings, stages, instance, shards)
        return requests or dg.SkipReason("no shard has a gap that can be filled now")

    return fill_gaps


def _registered(settings: Settings, instance: dg.DagsterInstance) -> set[str]:
    return set(instance.get_dynamic_partitions(partition_set(settings)))


def _gap_requests(
    settings: Settings, stages: list[Stage], instance: dg.DagsterInstance, shards: set[str]
) -> list[dg.RunRequest]:
    """A run for the first gap that can be filled of each of these registered shards."""
    known = {
        (stage.name, shard): materialization
        for stage in automated_shard_stages(stages)
        for shard, materialization in instance.get_latest_storage_id_by_partition(
            asset_key(settings, stage), dg.DagsterEventType.ASSET_MATERIALIZATION
        ).items()
    }
    gaps = find_gaps(
        stages,
        Partition(settings, open_store(settings)),
        shards,
        known,
    )
    return [
        dg.RunRequest(
            run_key=f"{settings.name}:{gap.shard}:{gap.stage.name}@{gap.basis}",
            partition_key=gap.shard,
            asset_selection=[asset_key(settings, gap.stage)],
        )
        for gap in gaps
    ]


def _are_to_come(
    settings: Settings, stages: list[Stage], instance: dg.DagsterInstance, shards: set[str]
) -> bool:
    """Whether each of these shards has an active run, or a gap that `fill_gaps` will request."""
    idle = shards - busy_shards(settings, instance)
    requests = _gap_requests(settings, stages, instance, idle & _registered(settings, instance))
    return len(requests) == len(idle) and not any(
        instance.get_runs(dg.RunsFilter(tags={"dagster/run_key": str(r.run_key)}), limit=1)
        for r in requests
    )
