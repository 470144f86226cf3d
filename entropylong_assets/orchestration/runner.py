"""Running jobs in this process, shard by shard."""

from __future__ import annotations

import os
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import dagster as dg

from entropylong_assets.orchestration.adoption import adopt
from entropylong_assets.orchestration.build import build_definitions
from entropylong_assets.orchestration.errors import EQUAL_FAILURES
from entropylong_assets.orchestration.jobs import jobs_by_stage
from entropylong_assets.orchestration.launcher import end_stopped_run, process_tags
from entropylong_assets.orchestration.naming import asset_key, corpus_of, prefixed
from entropylong_assets.orchestration.run_locks import working_alone
from entropylong_assets.orchestration.run_origin import recording_origin
from entropylong_assets.orchestration.run_selection import run_reason
from entropylong_assets.orchestration.signals import (
    StopActions,
    stop_if_asked,
    stop_signal,
    watch_signals,
)
from entropylong_assets.project import Project, open_store
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.errors import MissingSourceError
from entropylong_assets.stages.corpus.shards import current_shard, load_plan
from entropylong_assets.stages.stage import Job, Partition, Stage
from entropylong_assets.storage.manifest import TableError
from entropylong_assets.storage.tables import WHOLE


class RunError(ValueError):
    """A run did not succeed. The message is one line and says which step and why."""


class CheckFailedError(RunError):
    """A blocking check failed."""


@dataclass(frozen=True)
class Failure:
    """A job that failed on one shard, or on all shards together."""

    settings: Settings
    job: Job
    shard: str
    message: str
    """One line that names the step, the shard and the reason."""
    check_failed: bool = False
    """Whether a blocking check failed, and not a step."""


class RunFailuresError(RunError):
    """Some jobs failed. The others have run."""

    def __init__(self, failures: Sequence[Failure]) -> None:
        self.failures = tuple(failures)
        more = f" (and {len(failures) - 1:,} more failures)" if len(failures) > 1 else ""
        super().__init__(f"{failures[0].message}{more}")


@dataclass(frozen=True)
class Watcher:
    """Functions that are called during a run of many jobs."""

    on_start: Callable[[Settings, Job, str], None] = lambda *_: None
    """Gets the corpus or dataset, the job and a shard that the job is about to run on."""
    on_end: Callable[[Settings, Job, str, bool], None] = lambda *_: None
    """Gets the same, and whether the job has run; for shards that are up to date as well."""
    on_missing: Callable[[str, MissingSourceError], None] = lambda *_: None
    """Gets a shard that should be read again but can't be, and why. Its present data is kept."""
    on_job: Callable[[Settings, Job, Sequence[str], int], None] = lambda *_: None
    """Gets a job before its first run, the shards that it will run on, and how many it skips."""
    on_skip: Callable[[Settings, Stage, str, str], None] = lambda *_: None
    """Gets a stage and a shard for which there is nothing to make, and why."""
    on_failure: Callable[[Failure], None] = lambda *_: None
    """Gets each failure as it happens. The run goes on with other shards."""
    on_wait: Callable[[str], None] = lambda *_: None
    """Gets a line if another run works on the same shard and this one waits for it."""


def needs_run(settings: Settings, stage: Stage, shard: str, instance: dg.DagsterInstance) -> bool:
    """Whether a partition is not up to date or has not passed its blocking checks.

    What is up to date but unknown to the instance (data made by another one, or checks that a
    killed run had planned) is reported to it.
    """
    partition = Partition(settings, open_store(settings), shard)
    if run_reason(stage, partition) is not None:
        return True
    adopt(settings, stage, partition, instance)
    return False


SILENT = Watcher()
"""Does nothing."""


class Runner:
    """Runs jobs in this process, shard by shard."""

    def __init__(self, project: Project, instance: dg.DagsterInstance, watcher: Watcher) -> None:
        self._repository = build_definitions(project).get_repository_def()
        self._instance, self._watcher = instance, watcher
        self._failures: list[Failure] = []
        self._held_back: dict[str, set[str]] = defaultdict(set)
        """By corpus or dataset: shards that later stages skip, because a job failed on them, or
        because they were never read and their files are missing."""
        self.runs = 0

    def raise_failures(self) -> None:
        if self._failures:
            raise RunFailuresError(self._failures)

    def run(
        self,
        settings: Settings,
        stages: Sequence[Stage],
        shards: Sequence[str],
        *,
        follow: bool = True,
        always: bool = False,
    ) -> None:
        """Run the jobs of these stages on the shards that need it.

        always: run all of them. follow: if one stage of a job needs to run, also run the stages
        after it, since they read its output.
        """
        corpus = corpus_of(settings).name
        for job, of in jobs_by_stage(stages).items():
            out = self._held_back[corpus] | self._held_back[settings.name]
            if WHOLE in out:
                reason = "it was not run, because its input failed"
                self._watcher.on_skip(settings, of[0], WHOLE, reason)
                return
            of_job = list(shards) if of[0].partitioned else [WHOLE]

            def needed(shard: str, of: Sequence[Stage] = of) -> list[Stage]:
                return self._needed(settings, of, shard, follow=follow, always=always)

            planned = {shard: needed(shard) for shard in of_job if shard not in out}
            waiting = {shard: stages for shard, stages in planned.items() if stages}
            self._watcher.on_job(settings, job, list(waiting), len(of_job) - len(waiting))
            for shard in of_job:
                was_run = shard in waiting and self._run_one(
                    settings, job, shard, waiting[shard], needed
                )
                self._watcher.on_end(settings, job, shard, was_run)
                if self._keeps_failing(settings, job):
                    self._held_back[settings.name].add(WHOLE)
                    break

    def _needed(
        self, settings: Settings, of: Sequence[Stage], shard: str, *, follow: bool, always: bool
    ) -> list[Stage]:
        """The stages of a job that have to run on a shard."""
        partition = Partition(settings, open_store(settings), shard)
        needed: list[Stage] = []
        for stage in of:
            follows = follow and bool(needed)
            if not (always or follows or needs_run(settings, stage, shard, self._instance)):
                continue
            reason = stage.skip_reason(partition)
            if reason is None and not needed:
                reason = self._unmade_input(stage, of, partition)
            if reason is not None:
                self._watcher.on_skip(settings, stage, shard, reason)
            elif self._has_files(settings, stage, shard):
                needed.append(stage)
        return needed

    def _unmade_input(self, stage: Stage, of: Sequence[Stage], partition: Partition) -> str | None:
        """Why a stage can't run if an input in its own job is skipped and was never made."""
        for source in stage.inputs:
            if source in of and partition.store.manifest(source.tables, partition.shard) is None:
                return f"{source.name} is not materialized"
        return None

    def _run_one(
        self,
        settings: Settings,
        job: Job,
        shard: str,
        stages: list[Stage],
        needed: Callable[[str], list[Stage]],
    ) -> bool:
        """Run a job on a shard unless another run has just done so. Returns whether it ran."""
        definition = self._repository.get_job(prefixed(settings, job.name))
        with working_alone(self._instance, definition, shard, self._watcher.on_wait) as waited:
            stages = needed(shard) if waited else stages
            if not stages:
                return False
            self._watcher.on_start(settings, job, shard)
            keys = [asset_key(settings, stage) for stage in stages]
            self.runs += 1
            try:
                run_job(definition, shard, self._instance, keys)
            except RunError as error:
                failed = isinstance(error, CheckFailedError)
                self._failures.append(Failure(settings, job, shard, str(error), failed))
                self._held_back[settings.name].add(shard)
                self._watcher.on_failure(self._failures[-1])
        return True

    def _keeps_failing(self, settings: Settings, job: Job) -> bool:
        """Whether the last shards all failed for one reason, such as a full disk.

        The other shards would fail as well. Failed checks do not count: they concern one shard.
        """
        last = self._failures[-EQUAL_FAILURES:]
        same = {
            (failure.settings.name, failure.job, failure.message.replace(failure.shard, ""))
            for failure in last
        }
        if len(last) < EQUAL_FAILURES or len(same) > 1 or last[-1].check_failed:
            return False
        return (last[-1].settings.name, last[-1].job) == (settings.name, job)

    def _has_files(self, settings: Settings, stage: Stage, shard: str) -> bool:
        """Whether a stage that reads source files still finds those of the shard."""
        if stage.automation != "by_scan":
            return True
        store = open_store(settings)
        try:
            current_shard(settings, load_plan(store), shard)
        except MissingSourceError as error:
            self._watcher.on_missing(shard, error)
            try:
                store.require(stage.tables, shard)
            except TableError:  # never made, or in the format of another version
                self._held_back[settings.name].add(shard)
            return False
        return True


def run_job(
    job: dg.JobDefinition,
    shard: str,
    instance: dg.DagsterInstance,
    assets: Sequence[dg.AssetKey] | None = None,
) -> None:
    """Run a job on one shard, or some assets of it, with their checks.

    Raises RunError if it fails, CheckFailedError if a blocking check does, and KeyboardInterrupt
    after a signal to stop; the run is canceled then.
    """
    run_id = str(uuid.uuid4())
    stop = StopActions(
        on_stop=lambda: _cancel(instance, run_id),
        on_overdue=lambda: end_stopped_run(instance, run_id, canceled=True),
    )
    with watch_signals(stop, raises=False), recording_origin(instance, job.name):
        try:
            result = job.execute_in_process(
                instance=instance,
                run_id=run_id,
                partition_key=None if shard == WHOLE else shard,
                asset_selection=None if assets is None else list(assets),
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
                tags=process_tags(run_id, os.getpid()),
                raise_on_error=False,
            )
        except dg.DagsterExecutionInterruptedError:
            raise KeyboardInterrupt from None
        finally:
            if stop_signal() is not None:
                end_stopped_run(instance, run_id, canceled=True)
        stop_if_asked()
    for event in result.get_asset_check_evaluations():
        if event.blocking and not event.passed and event.severity == dg.AssetCheckSeverity.ERROR:
            raise CheckFailedError(
                f"{event.asset_key.to_user_string()}, {shard}: check {event.check_name} failed; "
                f"see its page in the UI"
            )
    if not result.success:
        step = next(e for e in result.all_events if e.is_step_failure)
        data = step.step_failure_data
        reason = data.user_failure_data.description if data.user_failure_data else None
        error = data.error
        message = reason or (error.message.strip() if error else "unknown failure")
        raise RunError(f"{step.step_key}, {shard}: {' '.join(str(message).split())}")


def _cancel(instance: dg.DagsterInstance, run_id: str) -> None:
    """Make Dagster cancel the run, not fail it, when its step is interrupted."""
    run = instance.get_run_by_id(run_id)
    if run is not None and not run.is_finished:
        instance.report_run_canceling(run, "Asked to stop by a signal.")
