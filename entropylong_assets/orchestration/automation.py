"""Declarative automation: how a new shard flows to samples by itself.

Each stage declares what starts it (`Stage.automation`); the conditions are evaluated by one sensor
per corpus and per dataset. A shard's asset is requested if it is missing, or if one of its inputs
was made again with other content. A changed setting, or a new version of an input over all shards,
recomputes no old shard.

Our own conditions read our tables and the instance, so the code server evaluates the sensors
(`use_user_code_server`).
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import replace
from functools import reduce
from operator import or_
from typing import Any

import dagster as dg

from entropylong_assets.orchestration.naming import asset_key
from entropylong_assets.orchestration.readiness import is_outdated, shards_contained
from entropylong_assets.project import open_store
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.stage import Partition, Stage
from entropylong_assets.stages.versioning import failed_check

_C = dg.AutomationCondition
Condition = Any
"""Dagster exports the base class of conditions, but not those of composed ones."""
Context = dg.AutomationContext[dg.AssetKey]
AssetResult = dg.AutomationResult[dg.AssetKey]


class ContainedInInputs(dg.AutomationCondition[dg.AssetKey]):
    """True for shards whose present content is part of the inputs over all shards.

    The index leaves out shards that failed their checks, and adds new ones once per batch. A search
    before the index contains the shard would miss all documents that were added with it.
    """

    def __init__(self, settings: Settings, stage: Stage) -> None:
        self._settings, self._stage = settings, stage

    @property
    def name(self) -> str:
        return "shard_is_contained_in_inputs"

    def evaluate(self, context: Context) -> AssetResult:
        asked = context.candidate_subset
        keys: Set[str] = frozenset()
        if not asked.is_empty:
            keys = asked.expensively_compute_partition_keys()
        partition = Partition(self._settings, open_store(self._settings))
        contained = shards_contained(self._stage, partition, keys)
        assert context.partitions_def is not None
        return dg.AutomationResult(
            context,
            context.asset_graph_view.get_subset_from_partition_keys(
                context.key, context.partitions_def, contained
            ),
        )


class PassedChecks(dg.AutomationCondition[dg.AssetKey]):
    """True for partitions of an input whose present content has passed its blocking checks.

    Reads the outcomes stored with the data. Dagster itself counts checks that a killed run had
    planned as not executed, although the data and its outcomes have not changed.
    """

    def __init__(self, settings: Settings, inputs: Sequence[Stage]) -> None:
        self._settings = settings
        self._inputs = {asset_key(settings, stage): stage for stage in inputs}

    @property
    def name(self) -> str:
        return "passed_blocking_checks"

    def evaluate(self, context: Context) -> AssetResult:
        asked, stage = context.candidate_subset, self._inputs[context.key]
        if asked.is_empty:
            return dg.AutomationResult(context, asked)
        partition = Partition(self._settings, open_store(self._settings))
        view = context.asset_graph_view
        if context.partitions_def is None:
            passed = failed_check(stage, partition) is None
            none = view.get_empty_subset(key=context.key)
            return dg.AutomationResult(context, asked if passed else none)
        shards = {
            shard
            for shard in asked.expensively_compute_partition_keys()
            if failed_check(stage, replace(partition, shard=shard)) is None
        }
        return dg.AutomationResult(
            context,
            view.get_subset_from_partition_keys(context.key, context.partitions_def, shards),
        )


class StillMissing(dg.AutomationCondition[dg.AssetKey]):
    """False for shards that were missing when the tick began and have been made since.

    Dagster first reads which partitions exist, then which are in progress. A shard whose run ends
    between the two reads is in neither list, and would be requested again.
    """

    @property
    def name(self) -> str:
        return "still_missing"

    async def evaluate(  # type: ignore[override]
        self, context: Context
    ) -> AssetResult:
        asked, view = context.candidate_subset, context.asset_graph_view
        missing = await view.compute_missing_subset(key=context.key, from_subset=asked)
        if missing.is_empty:
            return dg.AutomationResult(context, asked)
        materialized = view.instance.get_materialized_partitions(context.key)
        made_since = missing.expensively_compute_partition_keys() & materialized
        assert context.partitions_def is not None
        return dg.AutomationResult(
            context,
            asked.compute_difference(
                view.get_subset_from_partition_keys(context.key, context.partitions_def, made_since)
            ),
        )


class Outdated(dg.AutomationCondition[dg.AssetKey]):
    """True if a stage over all shards, made now, would contain other shards or other content.

    Compares tables and outcomes of checks instead of reading the events since the last tick, which
    would miss an input that is updated while the stage is being made.
    """

    def __init__(self, settings: Settings, stage: Stage) -> None:
        self._settings, self._stage = settings, stage
        self._known: tuple[object, bool] = (None, False)

    @property
    def name(self) -> str:
        return "eligible_shards_differ_from_content"

    def evaluate(self, context: Context) -> AssetResult:
        view = context.asset_graph_view
        # The manifests are read again only if something was made or a check has run since.
        basis = self._latest_events(view.instance)
        if self._known[0] != basis:
            partition = Partition(self._settings, open_store(self._settings))
            self._known = basis, is_outdated(self._stage, partition)
        return dg.AutomationResult(
            context,
            context.candidate_subset if self._known[1] else view.get_empty_subset(key=context.key),
        )

    def _latest_events(self, instance: dg.DagsterInstance) -> object:
        stages = [self._stage, *self._stage.upstream()]
        keys = [asset_key(self._settings, stage) for stage in stages]
        records = instance.get_asset_records(keys)
        materializations = tuple(
            sorted(r.asset_entry.last_materialization_storage_id or 0 for r in records)
        )
        checks = instance.get_event_records(
            dg.EventRecordsFilter(dg.DagsterEventType.ASSET_CHECK_EVALUATION), limit=1
        )
        return materializations, checks[0].storage_id if checks else 0


def condition_of(settings: Settings, stage: Stage) -> Condition | None:
    """The condition under which a stage's asset is requested; None if nothing starts it.

    Stages started by a scan have none: the scan of the sources asks for their runs.
    """
    if stage.automation == "per_shard":
        condition = _per_shard(settings, stage)
        if any(not source.partitioned for source in stage.inputs):
            condition = condition & ContainedInInputs(settings, stage)
        return condition.with_label("shard_follows")
    if stage.automation == "per_batch":
        return _per_batch(settings, stage).with_label("once_per_batch")
    return None


def _inputs_changed(settings: Settings, stage: Stage) -> Condition:
    """An input of the shard was made again with other content, in a run without this stage."""
    changed = _C.data_version_changed() & ~_C.executed_with_root_target()
    whole = [asset_key(settings, source) for source in stage.inputs if not source.partitioned]
    matches = _C.any_deps_match(changed.with_label("content_changed"))
    return matches.ignore(dg.AssetSelection.assets(*whole)) if whole else matches


def _ready(settings: Settings, stage: Stage) -> Condition:
    """All inputs exist, have passed their blocking checks, and are not being made.

    Inputs requested in the same tick are made in the same run, in which a failed blocking check
    stops the stages after it.
    """
    passed = PassedChecks(settings, stage.inputs)
    return (
        ~_C.any_deps_missing()
        & ~_C.any_deps_in_progress()
        & _C.all_deps_match(passed | _C.will_be_requested()).with_label("inputs_passed_checks")
        & ~_C.in_progress()
    )


def _not_tried() -> Condition:
    """Missing, and the last attempt did not fail: a failed shard waits for a user or new input."""
    return (_C.missing() & ~_C.execution_failed()).with_label("missing_and_not_failed")


def _per_shard(settings: Settings, stage: Stage) -> Condition:
    changed = _inputs_changed(settings, stage).since_last_handled()
    return (_not_tried() | changed) & _ready(settings, stage) & StillMissing()


def _per_batch(settings: Settings, stage: Stage) -> Condition:
    """For a stage over all shards: it is outdated, and no shard of its inputs is about to change.

    The stage itself looks up which shards are complete and healthy, so a failed shard does not
    delay it.
    """
    next_shards = [
        _C.any_deps_match(_not_tried() & _ready(settings, source)).allow(
            dg.AssetSelection.assets(asset_key(settings, source))
        )
        for source in stage.inputs
    ]
    settled = (
        ~_C.any_deps_match(_C.in_progress()).with_label("an_input_is_being_made")
        & ~_C.any_deps_match(_C.any_checks_match(_C.in_progress())).with_label("checks_running")
        & ~_C.any_deps_match(_C.any_deps_match(_C.in_progress())).with_label("a_shard_is_coming")
        & ~reduce(or_, next_shards).with_label("a_shard_is_next")
    )
    outdated = Outdated(settings, stage)
    exists = _C.any_deps_match(~_C.missing()).with_label("an_input_exists")
    updated = _C.any_deps_match(_C.newly_updated()).since_last_handled()
    # A failed attempt waits for a user or for new input.
    return exists & settled & ~_C.in_progress() & (~_C.execution_failed() | updated) & outdated
