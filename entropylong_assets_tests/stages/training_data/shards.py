"""The shards of a dataset, made and checked without Dagster."""

from __future__ import annotations

from entropylong_assets.project import open_store
from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.checks import run_checks
from entropylong_assets.stages.corpus.shards import plan_shards, save_plan
from entropylong_assets.stages.execution import materialize
from entropylong_assets.stages.stage import Partition, Stage
from entropylong_assets.stages.training_data.stage import TRAINING_DATASET_STAGE
from entropylong_assets.storage.tables import WHOLE


def partition_of(settings: Settings, stage: Stage, shard: str) -> Partition:
    """A partition of a stage of the dataset or its corpus."""
    owner = settings.corpus if stage.scope == "corpus" else settings
    return Partition(owner, open_store(owner), shard)


def make_stage(settings: Settings, stage: Stage, shard: str = WHOLE) -> None:
    """Materialize one partition and run its checks."""
    partition = partition_of(settings, stage, shard)
    materialize(stage, partition)
    for result in run_checks(stage, partition):
        assert result.passed or not result.check.blocking, (stage.name, result)


def make_shards(settings: Settings) -> list[str]:
    """Everything that an export is made from; returns the shards."""
    plan = plan_shards(settings.corpus)
    save_plan(open_store(settings.corpus), plan)
    shards = [shard.key for shard in plan.shards]
    for stage in TRAINING_DATASET_STAGE.upstream():
        for shard in shards if stage.partitioned else [WHOLE]:
            make_stage(settings, stage, shard)
    return shards


def export_partition(settings: Settings) -> Partition:
    return partition_of(settings, TRAINING_DATASET_STAGE, WHOLE)
