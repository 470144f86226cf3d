"""What stands in the way of a run on this machine, and what to do about it: `entropylong doctor`.

Each examination gives one finding. It reads and probes; it changes nothing, except that a small
file is put into the data folder and taken away again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import dagster as dg

from entropylong_assets.orchestration import doctor_checks
from entropylong_assets.orchestration.cluster import ray_nodes, without_a_node
from entropylong_assets.orchestration.doctor_checks import Finding, few
from entropylong_assets.orchestration.errors import line
from entropylong_assets.orchestration.local_run import dagster_home
from entropylong_assets.orchestration.partitions import PIPELINE, corpus_shard
from entropylong_assets.settings.model import Settings
from entropylong_assets.stages.corpus.shards import load_plan
from entropylong_assets.storage.tables import TableStore


def examine(settings: Settings) -> Iterator[Finding]:
    """All findings, one an examination, in the order in which one would mend them.

    A fault in one examination ends neither the others nor the doctor.
    """
    there: dg.DagsterInstance | None = None
    try:
        there = _open_instance()
    except Exception as error:  # a broken dagster.yaml or storage raises whatever it likes
        yield Finding(
            "instance",
            "fault",
            f"DAGSTER_HOME={os.environ.get('DAGSTER_HOME', '')}: {line(error)}; mend its "
            "dagster.yaml, or start its database and set the DAGSTER_PG names",
        )
    if there is not None:
        with there:
            yield from _each(
                ("instance", lambda: _instance(there)),
                ("daemon", lambda: _daemon(there)),
                ("pools", lambda: _pools(there)),
                ("partitions", lambda: _partitions(settings, there)),
            )
            if settings.cluster.engine == "ray":
                yield from _each(("ray", lambda: _ray(settings, there)))
    yield from _each(
        ("disk", lambda: doctor_checks.disk(settings)),
        ("device", lambda: doctor_checks.device(settings)),
        ("scoring model", lambda: doctor_checks.scoring_model(settings)),
        ("embedding model", lambda: doctor_checks.embedding_model(settings)),
        ("sources", lambda: doctor_checks.sources(settings)),
        ("tables", lambda: doctor_checks.tables(settings)),
        ("LanceDB table", lambda: doctor_checks.lancedb(settings)),
    )


def _each(*questions: tuple[str, Callable[[], Finding]]) -> Iterator[Finding]:
    for subject, examination in questions:
        try:
            yield examination()
        except Exception as error:
            yield Finding(subject, "fault", line(error))


def _open_instance() -> dg.DagsterInstance:
    home = dagster_home()
    if not os.access(home, os.W_OK):
        raise PermissionError(f"{home} can't be written to")
    return dg.DagsterInstance.get()


# ---------------------------------------------------------------------------------- the instance


def _instance(there: dg.DagsterInstance) -> Finding:
    runs = there.get_runs_count()
    storages = (there.run_storage, there.event_log_storage, there.schedule_storage)
    kind = type(there.run_storage).__name__
    for storage in storages:
        version = storage.alembic_version() if storage else None
        if version and version[0] and version[0] != version[1]:
            return Finding(
                "instance",
                "fault",
                "its storage was made by an older Dagster; stop all processes, back it up, and "
                "run `dagster instance migrate`",
            )
    told = f"{there.root_directory}, {runs:,} runs in {_STORAGES.get(kind, kind)}"
    launcher = type(there.run_launcher).__name__
    if launcher == "DefaultRunLauncher":
        return Finding(
            "instance",
            "warning",
            f"{told}; a run whose process dies would stay `started`: copy `run_launcher` from "
            "the project's dagster.yaml",
        )
    if not there.run_monitoring_enabled:
        return Finding(
            "instance",
            "warning",
            f"{told}; dead runs are not noticed: copy `run_monitoring` from the project's "
            "dagster.yaml",
        )
    return Finding("instance", "ok", told)


_STORAGES = {"SqliteRunStorage": "SQLite", "PostgresRunStorage": "PostgreSQL"}


def _daemon(there: dg.DagsterInstance) -> Finding:
    statuses = [status for status in there.get_daemon_statuses().values() if status.required]
    beats = [s.last_heartbeat for s in statuses if s.last_heartbeat]
    if not beats:
        return Finding(
            "daemon",
            "fault",
            "it has never run here: nothing queued, scheduled or sensed will start; "
            "run `make ui`, or the service `dagster-daemon run`",
        )
    newest = max(beats, key=lambda beat: beat.timestamp)
    age = time.time() - newest.timestamp
    silent = [s.daemon_type.lower() for s in statuses if not s.healthy]
    errors = [e for s in statuses if s.last_heartbeat for e in s.last_heartbeat.errors or []]
    if errors:
        first = " ".join(errors[0].message.split())[:200]
        return Finding("daemon", "fault", f"its last round failed: {first}; see its log")
    if silent:
        return Finding(
            "daemon",
            "fault",
            f"no sign of life for {age:,.0f} s ({few(silent)}): nothing queued, scheduled or "
            "sensed will start; run `make ui`, or the service `dagster-daemon run`",
        )
    return Finding("daemon", "ok", f"{len(statuses)} daemons alive, heard {age:,.0f} s ago")


def _pools(there: dg.DagsterInstance) -> Finding:
    limits = {limit.name: limit.limit for limit in there.event_log_storage.get_pool_limits()}
    config = there.get_concurrency_config().pool_config
    writers = limits.get("lancedb_writer", config.default_pool_limit)
    gpu = limits.get("gpu", config.default_pool_limit)
    if writers != 1:
        return Finding(
            "pools",
            "fault",
            f"lancedb_writer lets {'any number of' if writers is None else writers} writers at "
            "one table at once; run `dagster instance concurrency set lancedb_writer 1`",
        )
    if gpu is None:
        return Finding(
            "pools",
            "warning",
            "gpu has no limit: each run brings its own copy of the model; run "
            "`dagster instance concurrency set gpu 1`",
        )
    return Finding("pools", "ok", f"lancedb_writer {writers}, gpu {gpu}")


def _partitions(settings: Settings, there: dg.DagsterInstance) -> Finding:
    store = TableStore(settings.data_uri)
    registered = set(there.get_dynamic_partitions(str(corpus_shard.name)))
    planned = {shard.key for shard in load_plan(store).shards}
    lost = []
    for asset in PIPELINE:
        if asset == "embedding_index":
            continue
        known = there.get_materialized_partitions(dg.AssetKey(asset))
        lost += [f"{asset} of {s}" for s in sorted(known & registered - set(store.shards(asset)))]
    if lost:
        return Finding(
            "partitions",
            "fault",
            f"Dagster knows {few(lost)}, but {settings.data_uri} does not hold it; materialise "
            "it again, or name the data_uri that it was made under",
        )
    if registered - planned:
        names = sorted(registered - planned)
        return Finding(
            "partitions",
            "warning",
            f"{few(names)} registered but in no plan of {settings.data_uri}; delete the "
            "partition, or name the data_uri that it belongs to",
        )
    if planned - registered:
        names = sorted(planned - registered)
        return Finding(
            "partitions",
            "warning",
            f"{few(names)} planned but not registered; run `entropylong scan` or switch on the "
            "sensor `new_files`",
        )
    return Finding("partitions", "ok", f"{len(registered):,} shards registered")


def _ray(settings: Settings, there: dg.DagsterInstance) -> Finding:
    launched = getattr(there.run_launcher, "address", None)  # of dagster-ray's launcher alone
    address = settings.cluster.address or launched or os.environ.get("RAY_ADDRESS")
    try:
        nodes = ray_nodes(address)
    except Exception as error:
        return Finding(
            "ray",
            "fault",
            f"{address}: {line(error)}; start the cluster, name its job server in "
            "cluster.address, and set RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH if it asks for a token",
        )
    alone = without_a_node(settings.cluster, nodes)
    if alone:
        return Finding(
            "ray",
            "warning",
            f"{few(alone)}: none of {len(nodes)} nodes has what they ask for, and they wait until "
            "one has; lower it under cluster.resources (num_gpus: 0 where there is no GPU)",
        )
    cpus, gpus = (sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
    return Finding("ray", "ok", f"{address}, {len(nodes)} nodes, {cpus:g} CPUs, {gpus:g} GPUs")
