"""Assets and asset checks, made from the declarations of the stages by one factory.

Dagster reads the annotations of the functions here, so they are not postponed.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import dagster as dg

from entropylong_assets.orchestration.automation import condition_of
from entropylong_assets.orchestration.cluster import step_tags
from entropylong_assets.orchestration.errors import RETRIES, step_errors
from entropylong_assets.orchestration.instance_data import bind_data
from entropylong_assets.orchestration.metadata import (
    materialization_metadata,
    preview,
    table_schema,
)
from entropylong_assets.orchestration.naming import (
    OWNERS,
    asset_key,
    group_of,
    partitions_of,
    pool_of,
    prefixed,
)
from entropylong_assets.orchestration.resources import chosen_settings, resource_keys
from entropylong_assets.orchestration.settings_check import (
    settings_check_result,
    settings_check_spec,
)
from entropylong_assets.orchestration.shard_batches import ShardBatch, backfill_policy
from entropylong_assets.orchestration.signals import stop_if_asked
from entropylong_assets.project import Project, open_store
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.checks import EXAMPLES, CheckResult, run_checks
from entropylong_assets.stages.execution import Materialization, materialize
from entropylong_assets.stages.progress import Observer, ProgressState, disable_progress_bars
from entropylong_assets.stages.stage import Check, Partition, Stage
from entropylong_assets.stages.status import SETTINGS_CHECK, settings_fault
from entropylong_assets.stages.versioning import code_version
from entropylong_assets.storage.tables import WHOLE

disable_progress_bars()

observers: list[Callable[[Stage, str, ProgressState], None]] = []
"""Functions called with the progress of every step in this process: stage, shard and state. The
command line shows progress through them; the run's log has it anyway."""


def _observer(stage: Stage, shard: str) -> Observer:
    """Return the function that a step reports its progress to.

    It raises KeyboardInterrupt, which ends the step, if the process was asked to stop.
    """

    def notify(state: ProgressState) -> None:
        stop_if_asked()
        for observer in observers:
            observer(stage, shard, state)

    return notify


def _shards(context: Any, stage: Stage) -> list[str] | None:
    """The shards of a run over several, or None if it is over one partition."""
    if not stage.partitioned or context.has_partition_key:
        return None
    return list(context.partition_keys)


def _shard(context: Any, stage: Stage) -> str:
    return str(context.partition_key) if stage.partitioned else WHOLE


def _partition(context: Any, settings: Settings, stage: Stage, shard: str) -> Partition:
    """Return a partition under the settings of the launchpad.

    Raises SettingsError if a setting has an invalid value.
    """
    chosen = chosen_settings(settings, stage, context.resources)
    return Partition(chosen, open_store(chosen), shard)


def _make(context: Any, settings: Settings, stage: Stage, shard: str) -> Materialization | None:
    """Make one partition. Returns None if there is nothing to make. Raises dg.Failure."""
    with step_errors():
        partition = _partition(context, settings, stage, shard)
        bind_data([partition.settings], context.instance)
        reason = stage.skip_reason(partition)
        if reason is not None:
            context.log.warning(f"{partition.shard}: {stage.name} is skipped: {reason}")
            return None
        context.log.info(f"{stage.name}, {partition.shard}: started")
        return materialize(
            stage,
            partition,
            log=lambda line: context.log.info(f"{stage.name}, {partition.shard}: {line}"),
            warn=context.log.warning,
            observer=_observer(stage, partition.shard),
        )


def build_asset(project: Project, settings: Settings, stage: Stage) -> dg.AssetsDefinition:
    """The asset of one stage of a corpus or dataset."""

    @dg.asset(
        key=asset_key(settings, stage),
        deps=[asset_key(settings, source) for source in (*stage.inputs, *stage.optional_inputs)],
        partitions_def=partitions_of(settings, stage),
        description=stage.description,
        group_name=group_of(settings, stage),
        owners=OWNERS,
        kinds=set(stage.kinds),
        metadata={
            "dagster/column_schema": table_schema(stage.tables),
            "dagster/uri": f"{settings.data_uri}/{settings.name}/{stage.name}",
        },
        code_version=code_version(stage, settings),
        automation_condition=condition_of(settings, stage),
        retry_policy=RETRIES,
        backfill_policy=backfill_policy(project.cluster, stage),
        pool=pool_of(settings, stage),
        op_tags=step_tags(project.cluster, project.resources(stage)),
        required_resource_keys=resource_keys(settings, stage),
        output_required=False,  # a stage may have nothing to make
    )
    def asset(context: dg.AssetExecutionContext) -> Iterator[Any]:
        if (shards := _shards(context, stage)) is not None:
            batch = ShardBatch(context, settings, stage, shards)
            yield from batch.materialize(lambda shard: _make(context, settings, stage, shard))
            return
        materialization = _make(context, settings, stage, _shard(context, stage))
        if materialization is not None:
            yield dg.MaterializeResult(
                metadata=materialization_metadata(stage.tables, materialization),
                data_version=dg.DataVersion(materialization.manifest.data_version),
            )

    return asset


def build_checks(project: Project, settings: Settings, stage: Stage) -> dg.AssetChecksDefinition:
    """All checks of one stage, as one step that can run any of them alone."""
    specs = [
        dg.AssetCheckSpec(
            check.name,
            asset=asset_key(settings, stage),
            description=check.description,
            blocking=check.blocking,
            partitions_def=partitions_of(settings, stage),
        )
        for check in stage.checks
    ]
    specs.append(settings_check_spec(settings, stage))

    @dg.multi_asset_check(
        name=f"{prefixed(settings, stage.name)}_checks",
        specs=specs,
        can_subset=True,
        compute_kind="duckdb",
        # Without a retry policy, a cluster node that dies during a check fails the run.
        retry_policy=RETRIES,
        op_tags=step_tags(project.cluster, project.cluster.resources.checks),  # type: ignore[attr-defined]
        required_resource_keys=resource_keys(settings, stage),
    )
    def checks(context: dg.AssetCheckExecutionContext) -> Iterator[Any]:
        if (shards := _shards(context, stage)) is None:
            yield from _results(context, settings, stage, _shard(context, stage))
            return
        selected = {key.name for key in context.selected_asset_check_keys}
        yield from ShardBatch(context, settings, stage, shards).check(
            [spec.get_python_identifier() for spec in specs if spec.name in selected],
            lambda shard: _results(context, settings, stage, shard),
        )

    return checks


def _results(
    context: Any, settings: Settings, stage: Stage, shard: str
) -> Iterator[dg.AssetCheckResult]:
    """Run the selected checks on one partition. Raises dg.Failure."""
    with step_errors():
        partition = _partition(context, settings, stage, shard)
    selected = {key.name for key in context.selected_asset_check_keys}
    if SETTINGS_CHECK in selected:
        # Compares with the settings of the file, not with those of the launchpad.
        with step_errors():
            fault = settings_fault(stage, replace(partition, settings=settings))
        yield settings_check_result(settings, stage, fault)
    results = run_checks(stage, partition, selected)
    while True:
        with step_errors():
            result = next(results, None)
        if result is None:
            return
        yield dg.AssetCheckResult(
            asset_key=asset_key(settings, stage),
            check_name=result.check.name,
            passed=result.passed,
            severity=severity_of(result.check),
            description=None
            if result.passed
            else f"{result.faulty_rows:,} faulty rows. The rule: {result.check.description}",
            metadata=_check_metadata(result),
        )


def severity_of(check: Check) -> dg.AssetCheckSeverity:
    return dg.AssetCheckSeverity.WARN if check.warns else dg.AssetCheckSeverity.ERROR


def _check_metadata(result: CheckResult) -> dict[str, Any]:
    metadata: dict[str, Any] = {"faulty rows": result.faulty_rows}
    if not result.passed:
        metadata["examples"] = preview(result.examples, EXAMPLES)
    return metadata
