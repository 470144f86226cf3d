"""Runs from the command line, through the same Dagster jobs as in the UI."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import dagster as dg

from entropylong_assets.orchestration.adoption import restore_checks
from entropylong_assets.orchestration.build import build_definitions
from entropylong_assets.orchestration.instance_data import bind_data
from entropylong_assets.orchestration.launcher import end_dead_runs
from entropylong_assets.orchestration.naming import corpus_of, partition_set, prefixed
from entropylong_assets.orchestration.retirement import (
    remember_partitions,
    retire_deleted_partitions,
)
from entropylong_assets.orchestration.run_locks import working_alone
from entropylong_assets.orchestration.run_selection import Selection
from entropylong_assets.orchestration.runner import SILENT, Runner, Watcher
from entropylong_assets.orchestration.scanning import shards_without_files
from entropylong_assets.project import Project, open_store
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.fields_check import require_fields
from entropylong_assets.stages.corpus.shards import (
    ShardPlan,
    load_plan,
    replan,
    require_shards,
    save_plan,
)
from entropylong_assets.stages.embeddings.compaction import compact
from entropylong_assets.stages.near_duplicates.stages import INDEX
from entropylong_assets.storage.manifest import TableError
from entropylong_assets.storage.tables import WHOLE

SECONDS_BETWEEN_LOOKS = 5.0
"""Seconds between two looks for runs whose process was killed."""

log = logging.getLogger(__name__)


def dagster_home(folder: Path | None = None) -> Path:
    """Folder of the Dagster instance: DAGSTER_HOME, else `.dagster`. It need not exist.

    A relative one is in `folder`, that of the settings file, or in the working folder without
    one. Sets DAGSTER_HOME to the full path.
    """
    named = os.environ.get("DAGSTER_HOME") or ".dagster"
    home = Path(folder or Path.cwd(), named).absolute()
    os.environ["DAGSTER_HOME"] = str(home)
    return home


def has_instance(home: Path) -> bool:
    """Whether there is an instance in this folder, or a dagster.yaml for one."""
    return home.exists() and any(home.iterdir())


def _complete_home(home: Path) -> None:
    """Create the folder of an instance, with a copy of the package's dagster.yaml."""
    home.mkdir(parents=True, exist_ok=True)
    ours, theirs = Path(__file__).parents[1] / "dagster.yaml", home / "dagster.yaml"
    if not theirs.exists():
        shutil.copyfile(ours, theirs)


@contextmanager
def _ending_dead_runs(instance: dg.DagsterInstance) -> Iterator[None]:
    """End runs whose process was killed, now and while the context is open.

    Without a daemon, a run that waits for the pool slot of such a run would wait forever.
    """
    end_dead_runs(instance)
    closed = threading.Event()

    def watch() -> None:
        while not closed.wait(SECONDS_BETWEEN_LOOKS):
            try:
                end_dead_runs(instance)
            except Exception as error:  # a storage that does not answer now: the next look may
                log.debug("looking for dead runs: %s", error)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        closed.set()
        thread.join()


@contextmanager
def open_instance(project: Project | None = None) -> Iterator[dg.DagsterInstance]:
    """The Dagster instance. Runs whose process is killed are ended.

    project: the one that is going to be run or shown. Raises InstanceError if the instance shows
    other data under its names.
    """
    _complete_home(dagster_home(project.folder if project else None))
    with dg.DagsterInstance.get() as instance:
        if project is not None:
            bind_data((*project.corpora.values(), *project.datasets.values()), instance)
        with _ending_dead_runs(instance):
            yield instance


@contextmanager
def read_instance(project: Project) -> Iterator[dg.DagsterInstance]:
    """The Dagster instance for a command that only reads.

    If it does not exist yet, it is not created: a new one in a temporary folder takes its place.
    """
    if has_instance(dagster_home(project.folder)):
        with dg.DagsterInstance.get() as instance:
            yield instance
        return
    with tempfile.TemporaryDirectory(prefix="entropylong-instance-") as folder:
        _complete_home(Path(folder))
        with dg.DagsterInstance.from_config(folder) as instance:
            yield instance


def register_shards(
    corpus: Settings, instance: dg.DagsterInstance, *, accept_changes: bool = False
) -> ShardPlan:
    """Scan the sources, add shards for new files to the plan, and register their partitions.

    A shard whose partition was deleted in Dagster is retired instead of registered again.

    accept_changes: see `plan_shards`; for callers that run the shards afterwards. Otherwise changed
    files are only listed, and the next tick of a sensor starts their runs. Raises CorpusError, and
    registers nothing, if a source lacks the fields that its settings name.
    """
    store = open_store(corpus)
    retire_deleted_partitions(corpus, instance)
    plan = replan(corpus, load_plan(store), accept_changes=accept_changes)
    require_fields(corpus, plan)
    save_plan(store, plan)
    unmade = shards_without_files(plan, store)
    keys = [shard.key for shard in plan.shards if shard.key not in unmade]
    instance.add_dynamic_partitions(partition_set(corpus), keys)
    remember_partitions(corpus, instance)
    return plan


def run_project(
    project: Project,
    instance: dg.DagsterInstance,
    *,
    datasets: Sequence[str] | None = None,
    watcher: Watcher = SILENT,
    with_export: bool = True,
    selection: Selection | None = None,
) -> int:
    """Run what is not up to date: each corpus, then each dataset. Returns the number of runs.

    datasets: names of those to run, with their corpora; None: all, and all corpora. selection: in
    place of `datasets`, if given. The shards are those of the saved plans. A shard that fails is
    left out of later jobs, and the run goes on with the others. Raises CorpusError if a corpus has
    no shards, SettingsError for an unknown name, and RunFailuresError at the end if a run failed.
    """
    selected = selection or Selection(None if datasets is None else tuple(datasets))
    corpora, chosen = selected.owners(project)
    for settings in (*corpora, *chosen):
        for stage in project.stages_of(settings):
            restore_checks(settings, stage, open_store(settings), instance)
    runner = Runner(project, instance, watcher)
    plans = {corpus.name: load_plan(open_store(corpus)) for corpus in corpora}
    for corpus in corpora:
        require_shards(corpus, plans[corpus.name])
    selected.check_shards(plans.values())
    for settings in (*corpora, *chosen):
        stages = selected.stages(project, settings)
        if not with_export:
            stages = [s for s in stages if s.scope == "corpus" or s.partitioned]
        runner.run(settings, stages, selected.shards_of(plans[corpus_of(settings).name]))
    runner.raise_failures()
    return runner.runs


def compact_table(
    project: Project,
    corpus: Settings,
    instance: dg.DagsterInstance,
    keep_days: int,
    on_wait: Callable[[str], None],
) -> str:
    """Compact the LanceDB table of a corpus when no run indexes it. Returns one line for people.

    on_wait: gets one line that names the run that is waited for.
    """
    job = build_definitions(project).get_repository_def().get_job(prefixed(corpus, INDEX.name))
    with working_alone(instance, job, WHOLE, on_wait):
        return compact(open_store(corpus).corpus_uri, timedelta(days=keep_days)).message


def run_audits(
    project: Project,
    settings: Settings,
    instance: dg.DagsterInstance,
    watcher: Watcher = SILENT,
) -> int:
    """Run the audits of every verified shard that are not up to date. Returns the number of runs.

    Audits over all shards have a command of their own.

    Raises TableError if there is no verified shard, and RunFailuresError at the end if a run
    failed.
    """
    by_hand = [s for s in project.stages_of(settings) if s.automation == "by_hand"]
    audits = [stage for stage in by_hand if stage.partitioned]
    store = open_store(settings)
    audited = set.intersection(
        *(set(store.shards(source.tables)) for audit in audits for source in audit.inputs)
    )
    if not audited:
        raise TableError(
            f"dataset {settings.name} has no verified shard to audit; make one with "
            "`entropylong run`"
        )
    instance.add_dynamic_partitions(partition_set(settings), sorted(audited))
    runner = Runner(project, instance, watcher)
    runner.run(settings, audits, sorted(audited), follow=False)
    runner.raise_failures()
    return runner.runs


def run_export(
    project: Project,
    settings: Settings,
    instance: dg.DagsterInstance,
    watcher: Watcher = SILENT,
) -> None:
    """Export all eligible shards of a dataset and write its report. Raises RunFailuresError."""
    runner = Runner(project, instance, watcher)
    whole = [
        stage
        for stage in project.stages_of(settings)
        if not stage.partitioned and stage.automation != "by_hand"
    ]
    runner.run(settings, whole, [], always=True)
    runner.raise_failures()
