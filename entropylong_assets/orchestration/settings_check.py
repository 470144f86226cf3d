"""The asset check that warns of partitions made under other settings or code.

It runs with every materialization. When the settings change and Dagster has loaded them, a sensor
evaluates it again, so that the UI shows what is stale although nothing was run.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

import dagster as dg

from entropylong_assets.orchestration.naming import asset_key, partitions_of, prefixed
from entropylong_assets.project import open_store
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.stage import Partition, Stage
from entropylong_assets.stages.status import SETTINGS_CHECK, settings_fault
from entropylong_assets.stages.versioning import THREADS, code_version
from entropylong_assets.storage.tables import WHOLE

PARTITIONS_PER_TICK = 2_000
"""Maximum number of partitions per tick. The next ticks continue."""

SECONDS_BETWEEN_TICKS = 30

_DESCRIPTION = (
    "The partition was made under the settings and the code of the stage that Dagster has loaded. "
    "A warning means that it is stale: materialize it again, or restore the setting. "
    "`entropylong status` also shows whether its inputs are up to date."
)


def settings_check_spec(settings: Settings, stage: Stage) -> dg.AssetCheckSpec:
    """The check of one stage. Never blocking: stale data are valid data."""
    return dg.AssetCheckSpec(
        SETTINGS_CHECK,
        asset=asset_key(settings, stage),
        description=_DESCRIPTION,
        blocking=False,
        partitions_def=partitions_of(settings, stage),
    )


def settings_check_result(
    settings: Settings, stage: Stage, fault: str | None
) -> dg.AssetCheckResult:
    """The result of the check in a run. fault: what differs, or None."""
    return dg.AssetCheckResult(
        asset_key=asset_key(settings, stage),
        check_name=SETTINGS_CHECK,
        passed=fault is None,
        severity=dg.AssetCheckSeverity.WARN,
        description=fault,
    )


def settings_check_evaluation(
    settings: Settings, stage: Stage, shard: str, fault: str | None
) -> dg.AssetCheckEvaluation:
    """The same result, for a partition that no run makes."""
    return dg.AssetCheckEvaluation(
        asset_key=asset_key(settings, stage),
        check_name=SETTINGS_CHECK,
        passed=fault is None,
        metadata={},
        severity=dg.AssetCheckSeverity.WARN,
        description=fault,
        blocking=False,
        partition=None if shard == WHOLE else shard,
    )


def report_evaluation(
    evaluation: dg.AssetCheckEvaluation, run_id: str, instance: dg.DagsterInstance
) -> None:
    """Report an evaluation under the id of a run.

    Dagster keeps one evaluation per check, partition and run: a new id adds one, and the id of a
    run that had planned the check replaces the plan.
    """
    instance.report_dagster_event(
        dg.DagsterEvent(
            event_type_value=dg.DagsterEventType.ASSET_CHECK_EVALUATION.value,
            job_name="reported",
            event_specific_data=evaluation,
        ),
        run_id=run_id,
    )


@dataclass(frozen=True)
class Position:
    """What the sensor has looked at already; stored as its cursor."""

    versions: Mapping[str, str]
    """Version of each stage's settings and code at which all of its partitions were looked at."""
    stage: str = ""
    """Stage whose partitions a tick has looked at only in part."""
    version: str = ""
    after: str = ""
    """The last of them."""

    @classmethod
    def read(cls, cursor: str | None) -> Position:
        return cls(**json.loads(cursor)) if cursor else cls({})

    def write(self) -> str:
        return json.dumps(self.__dict__)


def evaluate_again(
    settings: Settings, stages: Sequence[Stage], cursor: str | None, instance: dg.DagsterInstance
) -> tuple[str, int]:
    """Evaluate the check on partitions of stages whose settings or code have changed.

    Looks at up to `PARTITIONS_PER_TICK` of them, and reports those whose result differs from the
    one that Dagster shows. Returns the new cursor and the number of results reported.
    """
    position, left, reported = Position.read(cursor), PARTITIONS_PER_TICK, 0
    run_id = str(uuid.uuid4())
    for stage in stages:
        version = code_version(stage, settings)
        if position.versions.get(stage.name) == version:
            continue
        resumed = (position.stage, position.version) == (stage.name, version)
        after = position.after if resumed else ""
        shards = [s for s in open_store(settings).shards(stage.tables) if s > after]
        looked_at = list(islice(sorted(shards), left))
        for evaluation in _differing(settings, stage, looked_at, instance):
            report_evaluation(evaluation, run_id, instance)
            reported += 1
        left -= len(looked_at)
        if len(looked_at) < len(shards):
            return Position(
                position.versions, stage.name, version, looked_at[-1] if looked_at else after
            ).write(), reported
        position = Position({**position.versions, stage.name: version})
    return position.write(), reported


def _differing(
    settings: Settings, stage: Stage, shards: Sequence[str], instance: dg.DagsterInstance
) -> Iterator[dg.AssetCheckEvaluation]:
    """Evaluations of these partitions that differ from the latest one that Dagster has."""
    if not shards:
        return
    key = dg.AssetCheckKey(asset_key(settings, stage), SETTINGS_CHECK)
    known = {
        info.partition_key or WHOLE: info.latest_execution_status.value
        for info in instance.event_log_storage.get_asset_check_partition_info([key])
    }
    partition = Partition(settings, open_store(settings))
    with ThreadPoolExecutor(THREADS) as pool:
        faults = pool.map(lambda s: settings_fault(stage, replace(partition, shard=s)), shards)
        for shard, fault in zip(shards, faults, strict=True):
            if known.get(shard) != ("SUCCEEDED" if fault is None else "FAILED"):
                yield settings_check_evaluation(settings, stage, shard, fault)


def build_settings_sensor(settings: Settings, stages: Sequence[Stage]) -> dg.SensorDefinition:
    """The sensor that evaluates the check again. On by itself, because it starts no run."""

    @dg.sensor(
        name=prefixed(settings, "settings_changes"),
        target=dg.AssetSelection.assets(*(asset_key(settings, stage) for stage in stages)),
        minimum_interval_seconds=SECONDS_BETWEEN_TICKS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            f"After a changed setting of `{settings.name}` has been loaded: evaluates the check "
            f"`{SETTINGS_CHECK}` again, so that stale partitions show a warning. Starts no run."
        ),
    )
    def settings_changes(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        cursor, reported = evaluate_again(settings, stages, context.cursor, context.instance)
        context.update_cursor(cursor)
        return dg.SkipReason(f"{reported:,} results of {SETTINGS_CHECK} have changed")

    return settings_changes
