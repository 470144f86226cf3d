"""Reporting partitions to a Dagster instance that did not make them.

Manifests and outcomes of checks are stored with the data, so it can be moved, shared and exported
without its instance, and any other instance can show it.
"""

from __future__ import annotations

import uuid

import dagster as dg

from entropylong_assets.orchestration.metadata import table_schema
from entropylong_assets.orchestration.naming import asset_key
from entropylong_assets.orchestration.settings_check import (
    report_evaluation,
    settings_check_evaluation,
)
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.stage import Check, Partition, Stage
from entropylong_assets.stages.status import SETTINGS_CHECK, settings_fault
from entropylong_assets.stages.versioning import code_version
from entropylong_assets.storage.manifest import CheckOutcome
from entropylong_assets.storage.tables import WHOLE, TableStore


def adopt(
    settings: Settings, stage: Stage, partition: Partition, instance: dg.DagsterInstance
) -> bool:
    """Report a partition and the outcomes of its checks, unless the instance knows it.

    Returns whether it was reported.
    """
    key = asset_key(settings, stage)
    manifest = partition.store.require(stage.tables, partition.shard)
    shard = None if partition.shard == WHOLE else partition.shard
    known = _known_version(instance, key, shard)
    if known == manifest.data_version:
        return False
    instance.report_runless_asset_event(
        dg.AssetMaterialization(
            key,
            description="Made by another Dagster instance and found up to date.",
            partition=shard,
            metadata={
                "dagster/row_count": manifest.tables[stage.tables.main].rows,
                "dagster/column_schema": table_schema(stage.tables),
                "bytes": sum(table.bytes for table in manifest.tables.values()),
            },
            tags={
                "dagster/data_version": manifest.data_version,
                "dagster/code_version": code_version(stage, settings),
            },
        )
    )
    # Dagster keeps one evaluation per check, partition and run, and only one without a run.
    run_id = str(uuid.uuid4())
    outcomes = partition.store.check_outcomes(stage.tables, partition.shard)
    evaluations = [
        _evaluation(dg.AssetCheckKey(key, check.name), check, outcomes[check.name], shard)
        for check in stage.checks
        if check.name in outcomes
    ]
    fault = settings_fault(stage, partition)
    evaluations.append(settings_check_evaluation(settings, stage, partition.shard, fault))
    for evaluation in evaluations:
        if known is None:
            instance.report_runless_asset_event(evaluation)
        else:
            report_evaluation(evaluation, run_id, instance)
    return True


def restore_checks(
    settings: Settings, stage: Stage, store: TableStore, instance: dg.DagsterInstance
) -> int:
    """Report the outcomes of checks that an ended run had planned and never evaluated.

    Dagster shows such a check as not executed, whatever its last result. The outcomes that belong
    to the present data are stored beside it. Returns the number of checks reported.
    """
    key = asset_key(settings, stage)
    checks = {dg.AssetCheckKey(key, c.name): c for c in stage.checks}
    of_settings = dg.AssetCheckKey(key, SETTINGS_CHECK)
    reported = 0
    for info in instance.event_log_storage.get_asset_check_partition_info([*checks, of_settings]):
        if info.latest_execution_status.value != "PLANNED":
            continue
        run = instance.get_run_by_id(info.latest_planned_run_id)
        if run is not None and not run.is_finished:
            continue
        shard = info.partition_key or WHOLE
        outcomes = store.check_outcomes(stage.tables, shard)
        evaluation = None
        if info.check_key == of_settings:
            fault = settings_fault(stage, Partition(settings, store, shard))
            evaluation = settings_check_evaluation(settings, stage, shard, fault)
        elif info.check_key.name in outcomes:
            check, outcome = checks[info.check_key], outcomes[info.check_key.name]
            evaluation = _evaluation(info.check_key, check, outcome, info.partition_key)
        if evaluation is not None:
            report_evaluation(evaluation, info.latest_planned_run_id, instance)
            reported += 1
    return reported


def _evaluation(
    key: dg.AssetCheckKey, check: Check, outcome: CheckOutcome, shard: str | None
) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=key.asset_key,
        check_name=key.name,
        passed=outcome.passed,
        metadata={"faulty rows": outcome.faulty_rows},
        severity=dg.AssetCheckSeverity.WARN if check.warns else dg.AssetCheckSeverity.ERROR,
        blocking=check.blocking,
        partition=shard,
    )


def _known_version(instance: dg.DagsterInstance, key: dg.AssetKey, shard: str | None) -> str | None:
    """Data version of the latest materialization that the instance knows."""
    partitions = None if shard is None else [shard]
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(key, asset_partitions=partitions), limit=1
    ).records
    if not records or records[0].asset_materialization is None:
        return None
    return (records[0].asset_materialization.tags or {}).get("dagster/data_version")
