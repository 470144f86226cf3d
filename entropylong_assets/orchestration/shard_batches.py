"""Runs over several shards, whose steps load their models once.

With `cluster.shards_per_run` above 1, Dagster launches a backfill as runs over ranges of
partitions. A step of such a run works on its shards one after the other, in one process:

- A shard is published and reported to Dagster as soon as it is made.
- A shard that fails does not stop the others. Later steps of the run leave it out, and the last
  step fails the run and names it. So does a shard that fails a blocking check.
- A step is retried for a transient fault, and a failed run is resumed, without the shards that are
  made already.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import dagster as dg

from entropylong_assets.orchestration.errors import EQUAL_FAILURES, RETRIES, step_errors
from entropylong_assets.orchestration.metadata import materialization_metadata
from entropylong_assets.orchestration.naming import (
    asset_key,
    corpus_of,
    owner_name,
)
from entropylong_assets.project import open_store
from entropylong_assets.settings.cluster import ClusterSettings
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.execution import Materialization
from entropylong_assets.stages.stage import Partition, Stage
from entropylong_assets.stages.versioning import code_version, failed_check
from entropylong_assets.storage.tables import WHOLE

RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"
_RESUMED = "dagster/is_resume_retry"

_NO_EVENT = {"__source_asset_observation__": True}
"""Metadata with which Dagster 1.13 records no materialization for an output. It would record one
for every partition of the run, also for those that failed, all with the same data version."""


def backfill_policy(cluster: ClusterSettings, stage: Stage) -> dg.BackfillPolicy | None:
    """How Dagster divides a backfill of a stage into runs. None: a run per shard."""
    if cluster.shards_per_run == 1 or not stage.partitioned:
        return None
    return dg.BackfillPolicy.multi_run(cluster.shards_per_run)


def shards_of_run(
    run: dg.DagsterRun, partitions: str, instance: dg.DagsterInstance
) -> Sequence[str]:
    """The shards that a run is over; `WHOLE` if it has no partition.

    partitions: name of the dynamic partition set.
    """
    first, last = run.tags.get(RANGE_START), run.tags.get(RANGE_END)
    if first is None or last is None:
        return [run.tags.get("dagster/partition", WHOLE)]
    shards = list(instance.get_dynamic_partitions(partitions))
    if first not in shards or last not in shards:  # removed since, or those of another corpus
        return [first, last]
    return shards[shards.index(first) : shards.index(last) + 1]


@dataclass(frozen=True)
class Obstacle:
    """Why a shard can't go on to the next step of its run."""

    reason: str
    is_failure: bool
    """False if a stage has nothing to make for the shard."""


@dataclass
class Outcome:
    """What a step did with its shards."""

    failures: dict[str, dg.Failure]
    """By shard, in order."""
    gave_up: bool
    """Whether shards were left, because the last ones failed for the same reason."""


@dataclass(frozen=True)
class ShardBatch:
    """The step of one stage, or of its checks, in a run over several shards."""

    context: Any
    settings: Settings
    stage: Stage
    shards: Sequence[str]

    def materialize(self, make: Callable[[str], Materialization | None]) -> Iterator[Any]:
        """Make the shards one after the other; the events of the asset's step.

        make: makes one partition; returns None if there is nothing to make. Raises dg.Failure.
        """
        key = asset_key(self.settings, self.stage)
        made = set(self._made.get(key, ()))

        def work(shard: str) -> Iterator[Any]:
            if (materialization := make(shard)) is not None:
                made.add(shard)
                yield self._event(shard, materialization)

        waiting = [shard for shard in self.shards if shard not in made]
        if len(waiting) < len(self.shards):
            self.context.log.info(f"{len(made):,} shards were made by an earlier attempt")
        before = tuple(self.stage.upstream())
        outcome = yield from self._each(waiting, before, before, work)
        goes_on = made and not self._ends_step(outcome)
        if goes_on:
            yield dg.MaterializeResult(metadata=_NO_EVENT)
        is_checked = f"{_step(self.settings, self.stage)}_checks" in self._steps
        if not goes_on or not (is_checked or self._has_later_stages):
            self._raise({**self._failures(before), **outcome.failures})

    def check(
        self, outputs: Iterable[str], evaluate: Callable[[str], Iterable[dg.AssetCheckResult]]
    ) -> Iterator[Any]:
        """Check the shards one after the other; the events of the step of the checks.

        outputs: names of the outputs of the selected checks. evaluate: runs them on one shard.
        Raises dg.Failure.
        """
        step = self.context.op_execution_context.get_step_execution_context()
        passed: set[str] = set()

        def work(shard: str) -> Iterator[Any]:
            is_blocked = False
            for result in evaluate(shard):
                evaluation = self._of_shard(result.to_asset_check_evaluation(step), shard)
                is_error = evaluation.severity == dg.AssetCheckSeverity.ERROR
                is_blocked |= bool(evaluation.blocking) and is_error and not evaluation.passed
                # An evaluation that is yielded would fail the step, and so stop the other shards.
                yield dg.DagsterEvent.asset_check_evaluation(step, evaluation)
            if not is_blocked:
                passed.add(shard)

        before = tuple(self.stage.upstream())
        outcome = yield from self._each(self.shards, (*before, self.stage), before, work)
        goes_on = passed and not self._ends_step(outcome)
        if goes_on:
            for name in outputs:
                yield dg.Output(None, name)
        if not goes_on or not self._has_later_stages:
            self._raise({**self._failures((*before, self.stage)), **outcome.failures})

    def _of_shard(self, evaluation: dg.AssetCheckEvaluation, shard: str) -> dg.AssetCheckEvaluation:
        """The evaluation as one of a shard, of its latest materialization."""
        target = evaluation.target_materialization_data
        record = self._latest(self.stage, shard)
        if target is not None and record is not None:
            # Dagster does not export the class.
            target = type(target)(
                storage_id=record.storage_id, run_id=record.run_id, timestamp=record.timestamp
            )
        return dg.AssetCheckEvaluation(
            asset_key=evaluation.asset_key,
            check_name=evaluation.check_name,
            passed=evaluation.passed,
            metadata=evaluation.metadata,
            target_materialization_data=target,
            severity=evaluation.severity,
            description=evaluation.description,
            blocking=evaluation.blocking,
            partition=shard,
        )

    def _each(
        self,
        shards: Sequence[str],
        made: Iterable[Stage],
        checked: Iterable[Stage],
        work: Callable[[str], Iterator[Any]],
    ) -> Generator[Any, None, Outcome]:
        """Do the work of each shard that these stages of the run have made and whose checks passed.

        Returns what failed.
        """
        outcome = Outcome({}, gave_up=False)
        in_a_row: list[str] = []
        for shard in shards:
            if (obstacle := self._obstacle(shard, made, checked)) is not None:
                self.context.log.warning(
                    f"{self.stage.name}, {shard} is left out: {obstacle.reason}"
                )
                continue
            try:
                yield from work(shard)
                in_a_row.clear()
            except dg.Failure as failure:
                outcome.failures[shard] = failure
                self.context.log.error(f"{self.stage.name}, {shard}: {failure.description}")
                in_a_row.append(str(failure.description).replace(shard, ""))
                if in_a_row[-EQUAL_FAILURES:] == in_a_row[-1:] * EQUAL_FAILURES:
                    self.context.log.error("The other shards are left: they would fail alike")
                    outcome.gave_up = True
                    break
        return outcome

    def _ends_step(self, outcome: Outcome) -> bool:
        """Whether the step fails now: to be retried, or because it gave up."""
        can_retry = self.context.retry_number < RETRIES.max_retries
        transient = any(failure.allow_retries for failure in outcome.failures.values())
        return (can_retry and transient) or outcome.gave_up

    def _raise(self, failures: dict[str, dg.Failure]) -> None:
        """Fail the step if a shard has failed. The message names them and the first reason."""
        if not failures:
            return
        shard, first = next(iter(failures.items()))
        names = ", ".join(list(failures)[:20])
        raise dg.Failure(
            f"{len(failures):,} of {len(self.shards):,} shards failed: {names}. {shard}: "
            f"{first.description}. Others that were made are published; run the failed ones again",
            allow_retries=any(failure.allow_retries for failure in failures.values()),
        )

    def _failures(self, stages: Sequence[Stage]) -> dict[str, dg.Failure]:
        """The shards that failed in an earlier step of the run."""
        obstacles = {shard: self._obstacle(shard, stages, stages) for shard in self.shards}
        return {
            shard: dg.Failure(obstacle.reason, allow_retries=False)
            for shard, obstacle in obstacles.items()
            if obstacle is not None and obstacle.is_failure
        }

    def _obstacle(
        self, shard: str, stages: Iterable[Stage], checked: Iterable[Stage]
    ) -> Obstacle | None:
        """What an earlier stage of this run lacks for a shard; None if the shard can go on.

        Stages that the run does not make are the concern of the stage that reads them.
        """
        for stage in stages:
            if not stage.partitioned or _step(self.settings, stage) not in self._steps:
                continue
            with step_errors():
                obstacle = self._obstacle_of(stage, shard, is_checked=stage in checked)
            if obstacle is not None:
                return obstacle
        return None

    def _obstacle_of(self, stage: Stage, shard: str, *, is_checked: bool) -> Obstacle | None:
        partition = self._partition(stage, shard)
        if shard not in self._made.get(asset_key(self.settings, stage), ()):
            try:
                reason = stage.skip_reason(partition)
            except ValueError:  # an input is missing, for which the stage has failed
                reason = None
            if reason is not None:
                return Obstacle(f"{stage.name} is skipped: {reason}", is_failure=False)
            return Obstacle(f"{stage.name} failed; see its error in the run", is_failure=True)
        has_checks = f"{_step(self.settings, stage)}_checks" in self._steps
        fault = failed_check(stage, partition) if has_checks and is_checked else None
        return None if fault is None else Obstacle(fault, is_failure=True)

    def _partition(self, stage: Stage, shard: str) -> Partition:
        owner = corpus_of(self.settings) if stage.scope == "corpus" else self.settings
        return Partition(owner, open_store(owner), shard)

    @cached_property
    def _steps(self) -> set[str]:
        """Names of the run's steps."""
        return {node.name for node in self.context.job_def.nodes}

    @cached_property
    def _has_later_stages(self) -> bool:
        """Whether a later step of the run is over the same shards, so that it names what failed."""
        graph = self.context.job_def.asset_layer.asset_graph
        in_run = set(self.context.job_def.asset_layer.selected_asset_keys)
        waiting, seen = [asset_key(self.settings, self.stage)], set[dg.AssetKey]()
        while waiting:
            for key in graph.get(waiting.pop()).child_keys & in_run - seen:
                if graph.get(key).partitions_def is not None:
                    return True
                seen.add(key)
                waiting.append(key)
        return False

    @cached_property
    def _made(self) -> dict[dg.AssetKey, set[str]]:
        """Shards that this run has made before this step, or the failed runs that it resumes."""
        instance, run = self.context.instance, self.context.run
        runs = [run.run_id]
        while run is not None and run.tags.get(_RESUMED) == "true" and run.parent_run_id:
            run = instance.get_run_by_id(run.parent_run_id)
            runs.append(run.run_id) if run is not None else None
        made: dict[dg.AssetKey, set[str]] = {}
        kind = dg.DagsterEventType.ASSET_MATERIALIZATION
        for run_id in runs:
            for entry in instance.all_logs(run_id, of_type=kind):
                event = entry.dagster_event
                if event is not None and event.asset_key and event.partition:
                    made.setdefault(event.asset_key, set()).add(event.partition)
        return made

    def _latest(self, stage: Stage, shard: str) -> dg.EventLogRecord | None:
        """The latest materialization of a stage for a shard."""
        records = self.context.instance.fetch_materializations(
            dg.AssetRecordsFilter(
                asset_key(self.settings, stage),
                asset_partitions=[shard] if stage.partitioned else None,
            ),
            limit=1,
        ).records
        return records[0] if records else None

    def _event(self, shard: str, materialization: Materialization) -> dg.AssetMaterialization:
        """The event with which Dagster itself would record the partition."""
        tags = {
            "dagster/data_version": materialization.manifest.data_version,
            "dagster/data_version_is_user_provided": "true",
            "dagster/code_version": code_version(self.stage, self.settings),
        }
        for source in self.stage.inputs:
            key = asset_key(self.settings, source)
            record = self._latest(source, shard)
            if record is not None and record.asset_materialization is not None:
                name, known = key.to_user_string(), record.asset_materialization.tags or {}
                tags[f"dagster/input_data_version/{name}"] = known.get("dagster/data_version", "")
                tags[f"dagster/input_event_pointer/{name}"] = str(record.storage_id)
        return dg.AssetMaterialization(
            asset_key(self.settings, self.stage),
            partition=shard,
            metadata=materialization_metadata(self.stage.tables, materialization),
            tags=tags,
        )


def _step(settings: Settings, stage: Stage) -> str:
    return f"{owner_name(settings, stage)}__{stage.name}"
