"""Runs of the pipeline from the command line, through the same Dagster jobs as in the UI."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg

from entropylong_assets.definitions import build_definitions
from entropylong_assets.orchestration.launcher import end_dead_runs, process_tags
from entropylong_assets.orchestration.partitions import corpus_shard
from entropylong_assets.orchestration.versioning import code_version, stays_current
from entropylong_assets.settings.model import Settings
from entropylong_assets.stages.corpus.shards import ShardPlan, load_plan, plan_shards, save_plan
from entropylong_assets.storage.tables import WHOLE, TableStore

STAGES: tuple[tuple[str, str], ...] = (
    ("corpus_documents", "ingest"),
    ("chunk_embeddings", "ingest"),
    ("embedding_index", "index"),
    ("entropy_scores", "score"),
    ("candidate_contexts", "verify"),
    ("verified_dependencies", "verify"),
    ("long_context_samples", "assemble"),
)
"""Assets in the order of the pipeline, with the job that makes them."""


class RunError(ValueError):
    """A run did not succeed. The message is one line and says which step and why."""


def dagster_home() -> Path:
    """Folder of the Dagster instance: DAGSTER_HOME, else `.dagster` in the working folder.

    A new one gets a copy of the project's dagster.yaml, where there is one.
    """
    home = Path(os.environ.setdefault("DAGSTER_HOME", str(Path.cwd() / ".dagster")))
    home.mkdir(parents=True, exist_ok=True)
    ours, theirs = Path.cwd() / "dagster.yaml", home / "dagster.yaml"
    if ours.exists() and not theirs.exists():
        shutil.copyfile(ours, theirs)
    return home


@contextmanager
def instance() -> Iterator[dg.DagsterInstance]:
    """The Dagster instance, rid of what runs left whose process was killed."""
    dagster_home()
    with dg.DagsterInstance.get() as there:
        end_dead_runs(there)
        yield there


def register_shards(settings: Settings, there: dg.DagsterInstance) -> ShardPlan:
    """Looks at the sources, adds shards for new files to the plan, and their partitions."""
    store = TableStore(settings.data_uri)
    plan = plan_shards(settings.corpus, load_plan(store).shards)
    save_plan(store, plan)
    there.add_dynamic_partitions(str(corpus_shard.name), [shard.key for shard in plan.shards])
    return plan


def is_current(
    asset: str, shard: str, settings: Settings, store: TableStore, there: dg.DagsterInstance
) -> bool:
    """Whether a partition was made from the present code, settings and inputs, by a run that
    this instance knows."""
    key = dg.AssetKey(asset)
    if shard == WHOLE:
        known = there.get_latest_materialization_event(key) is not None
    else:
        known = shard in there.get_materialized_partitions(key)
    return known and stays_current(asset, shard, settings, store)


def run_pipeline(
    settings: Settings,
    plan: ShardPlan,
    there: dg.DagsterInstance,
    on_start: Callable[[str, str], None] = lambda *_: None,
    on_end: Callable[[str, str, bool], None] = lambda *_: None,
) -> int:
    """Runs what is not current, stage after stage; returns the number of runs.

    `on_start` gets job and shard, `on_end` these and whether anything was run. Raises RunError.
    """
    store = TableStore(settings.data_uri)
    repository = build_definitions(settings).get_repository_def()
    runs = 0
    for job in dict.fromkeys(job for _, job in STAGES):
        made = [asset for asset, of in STAGES if of == job]
        for shard in [WHOLE] if job == "index" else [shard.key for shard in plan.shards]:
            on_start(job, shard)
            current = all(is_current(asset, shard, settings, store, there) for asset in made)
            if not current:
                run_job(repository.get_job(job), shard, there)
                runs += 1
            on_end(job, shard, not current)
    return runs


def export_is_current(settings: Settings, there: dg.DagsterInstance) -> bool:
    """Whether the latest export is of the present settings and later than all samples."""
    exported = _latest(there, "training_dataset")
    if exported is None or exported.asset_materialization is None:
        return False
    samples = _latest(there, "long_context_samples")
    version = (exported.asset_materialization.tags or {}).get("dagster/code_version")
    # In the order of the log and not by its times: a clock may go back.
    return version == code_version("training_dataset", settings) and (
        samples is None or samples.storage_id < exported.storage_id
    )


def _latest(there: dg.DagsterInstance, asset: str) -> dg.EventLogRecord | None:
    records = there.fetch_materializations(dg.AssetKey(asset), limit=1).records
    return records[0] if records else None


def run_export(settings: Settings, there: dg.DagsterInstance) -> dict[str, Any]:
    """Exports all healthy shards and writes the report; returns the metadata of the export.

    Raises RunError.
    """
    run_job(build_definitions(settings).get_repository_def().get_job("export"), WHOLE, there)
    event = there.get_latest_materialization_event(dg.AssetKey("training_dataset"))
    assert event is not None
    assert event.asset_materialization is not None
    return {name: value.value for name, value in event.asset_materialization.metadata.items()}


def run_job(
    job: dg.JobDefinition,
    shard: str,
    there: dg.DagsterInstance,
    assets: Sequence[str] | None = None,
) -> None:
    """Runs a job on one shard, or `assets` of it alone, with their checks. Raises RunError."""
    run_id = str(uuid.uuid4())
    result = job.execute_in_process(
        instance=there,
        run_id=run_id,
        partition_key=None if shard == WHOLE else shard,
        asset_selection=None if assets is None else [dg.AssetKey(asset) for asset in assets],
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
