"""Names in Dagster: whatever belongs to a corpus or dataset carries its name.

Any number of corpora and datasets share one Dagster instance, so no partition set, job, sensor,
schedule, resource or pool of a table has a fixed name.
"""

from __future__ import annotations

import dagster as dg

from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.stage import Stage, is_corpus

OWNERS = ("team:long-context-data",)
"""Shown in the UI. Change it to the team, or the addresses, responsible for the data."""


def corpus_of(settings: Settings) -> Settings:
    """These settings if they are a corpus', else those of the dataset's corpus."""
    corpus: Settings = settings if is_corpus(settings) else settings.corpus
    return corpus


def owner_name(settings: Settings, stage: Stage) -> str:
    """Name of the corpus or dataset that a stage's asset belongs to, as seen from a dataset."""
    return corpus_of(settings).name if stage.scope == "corpus" else settings.name


def asset_key(settings: Settings, stage: Stage) -> dg.AssetKey:
    return dg.AssetKey([owner_name(settings, stage), stage.name])


def prefixed(settings: Settings, name: str) -> str:
    """`<corpus or dataset>__<name>`: of jobs, sensors, schedules and steps."""
    return f"{settings.name}__{name}"


def settings_key(settings: Settings, section: str = "") -> str:
    """Key of the resource that has a section, or by default the settings outside all sections.

    The key has a prefix, because Dagster has resources of its own (`io_manager`) and makes keys
    fields of a named tuple, which has `index` and `count` already.
    """
    return f"{settings.name}_settings" + (f"__{section}" if section else "")


def partition_set(settings: Settings) -> str:
    """Name of the dynamic partition set of a corpus' shards; its datasets share it."""
    return f"{corpus_of(settings).name}_shards"


def shard_partitions(settings: Settings) -> dg.DynamicPartitionsDefinition:
    return dg.DynamicPartitionsDefinition(name=partition_set(settings))


def partitions_of(settings: Settings, stage: Stage) -> dg.DynamicPartitionsDefinition | None:
    return shard_partitions(settings) if stage.partitioned else None


def pool_of(settings: Settings, stage: Stage) -> str | None:
    """Pool that limits how many steps of a stage run at once."""
    return stage.pool.format(corpus=corpus_of(settings).name) if stage.pool else None


def group_of(settings: Settings, stage: Stage) -> str:
    return f"{settings.name}_{stage.group}" if stage.group else settings.name
