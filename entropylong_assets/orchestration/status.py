"""The status of a project: states of its partitions from the data, running ones from Dagster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dagster as dg

from entropylong_assets.orchestration.launcher import death_of_run
from entropylong_assets.orchestration.naming import asset_key, partition_set
from entropylong_assets.orchestration.run_selection import Selection
from entropylong_assets.orchestration.scanning import ACTIVE
from entropylong_assets.orchestration.shard_batches import shards_of_run
from entropylong_assets.project import Project, open_store
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.shards import load_plan
from entropylong_assets.stages.stage import Partition, is_corpus
from entropylong_assets.stages.status import STATES, PartitionState, StageStatus, status_of
from entropylong_assets.storage.tables import WHOLE

EXAMPLES = 5
"""Shards named per reason in the JSON output."""


def project_status(
    project: Project, instance: dg.DagsterInstance | None = None, dataset: str | None = None
) -> list[StageStatus]:
    """The status of every stage of every corpus and dataset, in the order of the data.

    instance: where active runs are looked up; None: nothing counts as running. dataset: only this
    one and its corpus. Writes nothing. Raises SettingsError for an unknown dataset.
    """
    corpora, datasets = Selection((dataset,) if dataset else None).owners(project)
    of_corpus: dict[str, list[StageStatus]] = {}
    for corpus in corpora:
        of_corpus[corpus.name] = _of_owner(project, corpus, corpus)
    all_statuses = [status for statuses in of_corpus.values() for status in statuses]
    for settings in datasets:
        before = of_corpus[settings.corpus.name]
        all_statuses += _of_owner(project, settings, settings.corpus, before)
    if instance is not None:
        _mark_running(all_statuses, instance)
    return all_statuses


def _of_owner(
    project: Project,
    settings: Settings,
    corpus: Settings,
    before: Sequence[StageStatus] = (),
) -> list[StageStatus]:
    shards = [shard.key for shard in load_plan(open_store(corpus)).shards]
    partition = Partition(settings, open_store(settings))
    return status_of(partition, project.stages_of(settings), shards, before)


def _mark_running(statuses: Sequence[StageStatus], instance: dg.DagsterInstance) -> None:
    """Mark partitions that an active run is going to make. What it has made stays up to date."""
    active = instance.get_runs(dg.RunsFilter(statuses=ACTIVE))
    runs = [run for run in active if not death_of_run(run)]
    for status in statuses:
        key = asset_key(status.owner, status.stage)
        for run in runs:
            if key not in (run.asset_selection or ()):
                continue
            partitioned = status.stage.partitioned
            partitions = partition_set(status.owner)
            shards = shards_of_run(run, partitions, instance) if partitioned else [WHOLE]
            for shard in shards:
                if shard in status.states and status.states[shard].state != "up_to_date":
                    what = run.status.value.replace("_", " ").lower()
                    running = PartitionState("running", f"run {run.run_id[:8]} is {what}")
                    status.states[shard] = running


def as_json(statuses: Sequence[StageStatus]) -> list[dict[str, Any]]:
    """One entry per stage: counts by state, and the reasons with the first of their shards."""
    return [
        {
            "corpus" if is_corpus(status.owner) else "dataset": status.owner.name,
            "stage": status.stage.name,
            "counts": {state: status.count(state) for state in STATES},
            "reasons": [
                {
                    "state": partition_state.state,
                    "reason": partition_state.reason,
                    "count": len(shards),
                    "shards": shards[:EXAMPLES],
                }
                for partition_state, shards in status.reasons().items()
            ],
        }
        for status in statuses
    ]
