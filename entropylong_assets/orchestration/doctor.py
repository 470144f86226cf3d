"""Finds what would stop a run on this machine, and says what to do: `entropylong doctor`.

Each check gives one finding. It reads and probes; it changes nothing, except that it writes a small
file into the data folder and removes it again. An instance that does not exist is not created.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import dagster as dg

from entropylong_assets.orchestration import doctor_checks
from entropylong_assets.orchestration.cluster import ray_nodes, unplaceable_steps
from entropylong_assets.orchestration.doctor_checks import Finding, existing_folder
from entropylong_assets.orchestration.errors import few, line
from entropylong_assets.orchestration.instance_data import refuse_other_data
from entropylong_assets.orchestration.local_run import (
    dagster_home,
    has_instance,
    read_instance,
)
from entropylong_assets.orchestration.naming import asset_key, partition_set, pool_of
from entropylong_assets.project import Project, open_store
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.shards import load_plan

Question = tuple[str, Callable[[], Finding]]


def examine(project: Project) -> Iterator[Finding]:
    """Yield all findings, one per check, in the order in which they should be fixed.

    An error in one check becomes its finding; the other checks run.
    """
    with ExitStack() as stack:
        try:
            instance = stack.enter_context(read_instance(project))
            _require_rights(dagster_home(project.folder))
        except Exception as error:  # a broken dagster.yaml or storage may raise any error
            yield Finding(
                "instance",
                "fault",
                f"DAGSTER_HOME={os.environ.get('DAGSTER_HOME', '')}: {line(error)}; correct its "
                "dagster.yaml, or start its database and set the DAGSTER_PG names",
            )
        else:
            yield from _answers(_of_the_instance(project, instance))
    yield from _answers(_of_the_machine(project))


def _of_the_instance(project: Project, instance: dg.DagsterInstance) -> Iterator[Question]:
    yield "instance", partial(_instance, project, instance)
    yield "daemon", partial(_daemon, instance)
    yield "pools", partial(_pools, project, instance)
    for settings in (*project.corpora.values(), *project.datasets.values()):
        check = partial(_partitions, project, settings, instance)
        yield f"{settings.name} partitions", check
    if project.cluster.engine == "ray":
        yield "ray", partial(_ray, project, instance)


def _of_the_machine(project: Project) -> Iterator[Question]:
    yield "disk", partial(doctor_checks.disk, project.data_uri)
    for owners, checks in (
        (project.corpora, doctor_checks.OF_A_CORPUS),
        (project.datasets, doctor_checks.OF_A_DATASET),
    ):
        for settings in owners.values():
            for name, check in checks.items():
                yield f"{settings.name} {name}", partial(check, settings)
    for settings in (*project.corpora.values(), *project.datasets.values()):
        check = partial(doctor_checks.tables, settings, project.stages_of(settings))
        yield f"{settings.name} tables", check
    for settings in (*project.corpora.values(), *project.datasets.values()):
        check = partial(doctor_checks.staleness, settings, project.stages_of(settings))
        yield f"{settings.name} up to date", check


def _answers(questions: Iterator[Question]) -> Iterator[Finding]:
    for subject, check in questions:
        try:
            finding = check()
            yield Finding(subject, finding.verdict, finding.message)
        except Exception as error:
            yield Finding(subject, "fault", line(error))


def _require_rights(home: Path) -> None:
    if not os.access(existing_folder(home), os.W_OK):
        raise PermissionError(f"{home} can't be written to")


def _instance(project: Project, instance: dg.DagsterInstance) -> Finding:
    home = dagster_home(project.folder)
    if not has_instance(home):
        return Finding(
            "instance", "ok", f"{home} is not made yet: `entropylong run` or `scan` makes it"
        )
    runs = instance.get_runs_count()
    storages = (instance.run_storage, instance.event_log_storage, instance.schedule_storage)
    kind = type(instance.run_storage).__name__
    for storage in storages:
        version = storage.alembic_version() if storage else None
        if version and version[0] and version[0] != version[1]:
            return Finding(
                "instance",
                "fault",
                "its storage was made by an older Dagster; stop all processes, back it up, and "
                "run `dagster instance migrate`",
            )
    message = f"{instance.root_directory}, {runs:,} runs in {_STORAGES.get(kind, kind)}"
    launcher = type(instance.run_launcher).__name__
    if launcher == "DefaultRunLauncher":
        return Finding(
            "instance",
            "warning",
            f"{message}; a run whose process dies would stay `started`: copy `run_launcher` from "
            "the project's dagster.yaml",
        )
    if not instance.run_monitoring_enabled:
        return Finding(
            "instance",
            "warning",
            f"{message}; dead runs are not noticed: copy `run_monitoring` from the project's "
            "dagster.yaml",
        )
    return Finding("instance", "ok", message)


_STORAGES = {"SqliteRunStorage": "SQLite", "PostgresRunStorage": "PostgreSQL"}


_START_DAEMON = (
    "run `make ui` in a clone, `dg dev -m entropylong_assets.definitions`, or the service "
    "`dagster-daemon run`"
)


def _daemon(instance: dg.DagsterInstance) -> Finding:
    statuses = [status for status in instance.get_daemon_statuses().values() if status.required]
    beats = [s.last_heartbeat for s in statuses if s.last_heartbeat]
    if not beats:
        # Whoever uses the command line alone needs none.
        n_queued = instance.get_runs_count(dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED]))
        waiting = f"; {n_queued:,} runs are queued" if n_queued else ""
        return Finding(
            "daemon",
            "fault" if n_queued else "warning",
            f"it has never run here: no queued run, schedule or sensor will start{waiting}; "
            f"{_START_DAEMON}",
        )
    newest = max(beats, key=lambda beat: beat.timestamp)
    age = time.time() - newest.timestamp
    silent = [s.daemon_type.lower() for s in statuses if not s.healthy]
    errors = [e for s in statuses if s.last_heartbeat for e in s.last_heartbeat.errors or []]
    if errors:
        first = " ".join(errors[0].message.split())[:200]
        return Finding("daemon", "fault", f"its last iteration failed: {first}; see its log")
    if silent:
        return Finding(
            "daemon",
            "fault",
            f"no heartbeat for {age:,.0f} s ({few(silent)}): no queued run, schedule or sensor "
            f"will start; {_START_DAEMON}",
        )
    return Finding("daemon", "ok", f"{len(statuses)} daemons, last heartbeat {age:,.0f} s ago")


def _pools(project: Project, instance: dg.DagsterInstance) -> Finding:
    limits = {limit.name: limit.limit for limit in instance.event_log_storage.get_pool_limits()}
    default = instance.get_concurrency_config().pool_config.default_pool_limit
    pools: dict[str, int | None] = {}
    for settings in (*project.corpora.values(), *project.datasets.values()):
        for stage in project.stages_of(settings):
            name = pool_of(settings, stage)
            if name is None:
                continue
            pools[name] = limits.get(name, default)
            # A pool with the corpus' name limits the steps that index its vector table.
            if name != stage.pool and pools[name] != 1:
                return Finding(
                    "pools",
                    "fault",
                    f"{name} allows {'any number of' if pools[name] is None else pools[name]} "
                    "steps to index or compact one table at once, and concurrent ones end with a "
                    f"commit conflict; run `dagster instance concurrency set {name} 1`",
                )
    for name, limit in pools.items():
        if limit is None:
            return Finding(
                "pools",
                "warning",
                f"{name} has no limit: each run loads its own copy of the model; run "
                f"`dagster instance concurrency set {name} 1`",
            )
    return Finding("pools", "ok", ", ".join(f"{n} {limit}" for n, limit in sorted(pools.items())))


def _partitions(project: Project, settings: Settings, instance: dg.DagsterInstance) -> Finding:
    subject, store = settings.name, open_store(settings)
    refuse_other_data([settings], instance)
    registered = set(instance.get_dynamic_partitions(partition_set(settings)))
    planned = {shard.key for shard in load_plan(store).shards}
    lost = []
    for stage in project.stages_of(settings):
        if stage.partitioned:
            known = instance.get_materialized_partitions(asset_key(settings, stage))
            missing = known & registered - set(store.shards(stage.tables))
            lost += [f"{stage.name} of {shard}" for shard in sorted(missing)]
    if lost:
        return Finding(
            subject,
            "fault",
            f"Dagster knows {few(lost)}, but {settings.data_uri} does not contain it; "
            "materialize it again, or set data_uri to the one that it was made under",
        )
    if registered - planned:
        return Finding(
            subject,
            "warning",
            f"{few(sorted(registered - planned))} registered but in no plan of "
            f"{settings.data_uri}; delete the partition, or set data_uri to the one that has it",
        )
    if planned - registered:
        return Finding(
            subject,
            "warning",
            f"{few(sorted(planned - registered))} planned but not registered; run `entropylong "
            "scan` or switch on the sensor `new_files`",
        )
    return Finding(subject, "ok", f"{len(registered):,} shards registered")


def _ray(project: Project, instance: dg.DagsterInstance) -> Finding:
    launched = getattr(instance.run_launcher, "address", None)  # of dagster-ray's launcher only
    address = project.cluster.address or launched or os.environ.get("RAY_ADDRESS")
    try:
        nodes = ray_nodes(address)
    except Exception as error:
        return Finding(
            "ray",
            "fault",
            f"{address}: {line(error)}; start the cluster, name its job server in "
            "cluster.address, and set RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH if it asks for a token",
        )
    unplaceable = unplaceable_steps(project, nodes)
    if unplaceable:
        return Finding(
            "ray",
            "warning",
            f"{few(unplaceable)}: none of {len(nodes)} nodes has the resources that they request, "
            "so they would wait; lower them under cluster.resources (num_gpus: 0 without a GPU)",
        )
    cpus, gpus = (sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
    return Finding("ray", "ok", f"{address}, {len(nodes)} nodes, {cpus:g} CPUs, {gpus:g} GPUs")
