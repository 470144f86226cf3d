"""Named jobs of each corpus and dataset, derived from the stages.

Stages over all shards have jobs of their own: in a partitioned job they would run once per
partition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dagster as dg

from entropylong_assets.orchestration.cluster import executor
from entropylong_assets.orchestration.naming import asset_key, prefixed, shard_partitions
from entropylong_assets.project import Project
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.stage import Job, Stage, is_corpus

_HOUR = 3600

BUILD_SAMPLES = Job(
    "build_samples",
    "Makes the samples of shards whose chunks are in the index: all stages of the dataset that "
    "run shard by shard.",
    72,
)
EVERYTHING = Job(
    "everything",
    "Takes one shard from its file to samples, including the index. It makes the index once per "
    "shard: for many shards, backfill the corpus' `ingest`, run `index` once, and backfill "
    "`build_samples` instead.",
    72,
)


def jobs_by_stage(stages: Sequence[Stage]) -> dict[Job, list[Stage]]:
    """The jobs that the stages declare, with their stages, in the order of the data."""
    jobs: dict[Job, list[Stage]] = {}
    for stage in stages:
        jobs.setdefault(stage.job, []).append(stage)
    return jobs


def build_jobs(project: Project, settings: Settings) -> list[Any]:
    """All jobs of a corpus or dataset."""
    stages = project.stages_of(settings)
    jobs = [_job(project, settings, job, of) for job, of in jobs_by_stage(stages).items()]
    if is_corpus(settings):
        return jobs
    follows = [s for s in stages if s.automation == "per_shard"]
    upstream = [s for s in project.stages if s.scope == "corpus" and s.automation != "by_hand"]
    return [
        *jobs,
        _job(project, settings, BUILD_SAMPLES, follows),
        _job(project, settings, EVERYTHING, [*upstream, *follows]),
    ]


def _job(project: Project, settings: Settings, job: Job, stages: Sequence[Stage]) -> Any:
    partitioned = any(stage.partitioned for stage in stages)
    return dg.define_asset_job(
        prefixed(settings, job.name),
        selection=dg.AssetSelection.assets(*(asset_key(settings, stage) for stage in stages)),
        description=job.description,
        partitions_def=shard_partitions(settings) if partitioned else None,
        # A run of a backfill may be over several shards.
        tags={"dagster/max_runtime": str(job.hours * _HOUR * project.cluster.shards_per_run)},
        executor_def=executor(project),
    )
