"""Runs from the command line, through the same Dagster jobs as in the UI."""

from __future__ import annotations

import os
import shutil
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from entropylong_assets.orchestration.adoption import adopt
from entropylong_assets.orchestration.build import build_definitions
from entropylong_assets.orchestration.jobs import jobs_by_stage
from entropylong_assets.orchestration.launcher import end_dead_runs, process_tags
from entropylong_assets.orchestration.naming import asset_key, partition_set, prefixed
from entropylong_assets.orchestration.scanning import shards_without_files
from entropylong_assets.project import Project, open_store
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.errors import MissingSourceError
from entropylong_assets.stages.corpus.fields_check import require_fields
from entropylong_assets.stages.corpus.shards import (
    ShardPlan,
    current_shard,
    load_plan,
    plan_shards,
    require_shards,
    save_plan,
)
from entropylong_assets.stages.stage import Job, Partition, Stage
from entropylong_assets.stages.versioning import failed_check, stale_reason
from entropylong_assets.storage.manifest import TableError
from entropylong_assets.storage.tables import WHOLE


class RunError(ValueError):
    """A run did not succeed. The message is one line and says which step and why."""


def dagster_home() -> Path:
    """Folder of the Dagster instance: DAGSTER_HOME, else `.dagster` in the working folder.

    A new one gets a copy of the project's dagster.yaml, if there is one.
    """
    home = Path(os.environ.setdefault("DAGSTER_HOME", str(Path.cwd() / ".dagster")))
    home.mkdir(parents=True, exist_ok=True)
    ours, theirs = Path.cwd() / "dagster.yaml", home / "dagster.yaml"
    if ours.exists() and not theirs.exists():
        shutil.copyfile(ours, theirs)
    return home


@contextmanager
def open_instance() -> Iterator[dg.DagsterInstance]:
    """The Dagster instance, after runs whose process was killed have been ended."""
    dagster_home()
    with dg.DagsterInstance.get() as instance:
        end_dead_runs(instance)
        yield instance


def register_shards(
    corpus: Settings, instance: dg.DagsterInstance, *, accept_changes: bool = False
) -> ShardPlan:
    """Scan the sources, add shards for new files to the plan, and register their partitions.

    accept_changes: as `plan_shards` does, for a caller that runs the shards. Otherwise changed
    files are only named, and the next tick of a sensor starts their runs. Raises CorpusError, and
    registers nothing, if a source lacks the fields that its settings name.
    """
    store = open_store(corpus)
    before = load_plan(store)
    plan = plan_shards(corpus, before.shards, empty=before.empty, accept_changes=accept_changes)
    require_fields(corpus, plan)
    save_plan(store, plan)
    unmade = shards_without_files(plan, store)
    keys = [shard.key for shard in plan.shards if shard.key not in unmade]
    instance.add_dynamic_partitions(partition_set(corpus), keys)
    return plan


@dataclass(frozen=True)
class Watcher:
    """What a caller is told of a run of many jobs."""

    on_start: Callable[[Settings, Job, str], None] = lambda *_: None
    """Gets the corpus or dataset, the job and the shard."""
    on_end: Callable[[Settings, Job, str, bool], None] = lambda *_: None
    """The same, and whether anything was run."""
    on_missing: Callable[[str, MissingSourceError], None] = lambda *_: None
    """Gets a shard that should be read again and can't, and why. It keeps what data it has."""


def needs_run(settings: Settings, stage: Stage, shard: str, instance: dg.DagsterInstance) -> bool:
    """Whether a partition is not up to date or has not passed its blocking checks.

    What is up to date but unknown to the instance (data made by another one) is reported to it.
    """
    partition = Partition(settings, open_store(settings), shard)
    if stale_reason(stage, partition) is not None or failed_check(stage, partition) is not None:
        return True
    adopt(settings, stage, partition, instance)
    return False


def run_project(
    project: Project,
    instance: dg.DagsterInstance,
    *,
    datasets: Sequence[str] | None = None,
    watcher: Watcher = Watcher(),
    with_export: bool = True,
) -> int:
    """Run what is not up to date: each corpus, then each dataset. Returns the number of runs.

    datasets: names of those to run, with their corpora; None: all, and all corpora. The shards are
    those of the saved plans. Raises CorpusError if a corpus has none, RunError at the first run
    that fails.
    """
    chosen = [d for d in project.datasets.values() if datasets is None or d.name in datasets]
    corpora = [
        corpus
        for corpus in project.corpora.values()
        if datasets is None or any(d.corpus.name == corpus.name for d in chosen)
    ]
    runner = _Runner(project, instance, watcher)
    for corpus in corpora:
        require_shards(corpus, load_plan(open_store(corpus)))
    for settings in (*corpora, *chosen):
        follows = [s for s in project.stages_of(settings) if s.automation != "by_hand"]
        if not with_export:
            follows = [s for s in follows if s.scope == "corpus" or s.partitioned]
        runner.run(settings, follows)
    return runner.runs


def run_audits(
    project: Project,
    settings: Settings,
    instance: dg.DagsterInstance,
    watcher: Watcher = Watcher(),
) -> int:
    """Run the audits of every verified shard that are not up to date. Returns the number of runs.

    Raises RunError.
    """
    audits = [s for s in project.stages_of(settings) if s.automation == "by_hand"]
    store = open_store(settings)
    audited = set.intersection(
        *(set(store.shards(source.tables)) for audit in audits for source in audit.inputs)
    )
    instance.add_dynamic_partitions(partition_set(settings), sorted(audited))
    runner = _Runner(project, instance, watcher)
    runner.run(settings, audits, sorted(audited), follow=False)
    return runner.runs


def run_export(project: Project, settings: Settings, instance: dg.DagsterInstance) -> None:
    """Export all eligible shards of a dataset and write its report. Raises RunError."""
    runner = _Runner(project, instance, Watcher())
    whole = [s for s in project.stages_of(settings) if not s.partitioned]
    runner.run(settings, whole, always=True)


class _Runner:
    """Runs jobs in this process, shard by shard."""

    def __init__(self, project: Project, instance: dg.DagsterInstance, watcher: Watcher) -> None:
        self._repository = build_definitions(project).get_repository_def()
        self._instance, self._watcher = instance, watcher
        self._without_data: dict[str, set[str]] = defaultdict(set)
        """By corpus: shards that no stage can read, and whose files are missing now."""
        self.runs = 0

    def run(
        self,
        settings: Settings,
        stages: Sequence[Stage],
        shards: Sequence[str] | None = None,
        *,
        follow: bool = True,
        always: bool = False,
    ) -> None:
        """Run the jobs of these stages: those that need it, or `always` all.

        follow: run the stages of the job after one that needs it as well, since they read it.
        """
        if shards is None:
            shards = [shard.key for shard in load_plan(open_store(settings)).shards]
        without_data = self._without_data[Partition(settings, open_store(settings)).corpus.name]
        for job, of in jobs_by_stage(stages).items():
            for shard in shards if of[0].partitioned else [WHOLE]:
                self._watcher.on_start(settings, job, shard)
                needed = [
                    stage
                    for stage in of
                    if shard not in without_data
                    and (always or needs_run(settings, stage, shard, self._instance))
                    and self._has_files(settings, stage, shard, without_data)
                ]
                if needed and follow:
                    needed = of[of.index(needed[0]) :]
                if needed:
                    keys = [asset_key(settings, stage) for stage in needed]
                    definition = self._repository.get_job(prefixed(settings, job.name))
                    run_job(definition, shard, self._instance, keys)
                    self.runs += 1
                self._watcher.on_end(settings, job, shard, bool(needed))

    def _has_files(
        self, settings: Settings, stage: Stage, shard: str, without_data: set[str]
    ) -> bool:
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
                without_data.add(shard)
            return False
        return True


def run_job(
    job: dg.JobDefinition,
    shard: str,
    instance: dg.DagsterInstance,
    assets: Sequence[dg.AssetKey] | None = None,
) -> None:
    """Run a job on one shard, or some assets of it, with their checks. Raises RunError."""
    run_id = str(uuid.uuid4())
    result = job.execute_in_process(
        instance=instance,
        run_id=run_id,
        partition_key=None if shard == WHOLE else shard,
        asset_selection=None if assets is None else list(assets),
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        tags=process_tags(run_id, os.getpid()),
        raise_on_error=False,
    )
    for event in result.get_asset_check_evaluations():
        if event.blocking and not event.passed and event.severity == dg.AssetCheckSeverity.ERROR:
            raise RunError(
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
