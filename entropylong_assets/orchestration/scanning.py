"""Scanning the sources of a corpus: which shards are new or changed, and which runs that needs."""

from __future__ import annotations

from dataclasses import dataclass

import dagster as dg

from entropylong_assets.orchestration.errors import few
from entropylong_assets.orchestration.naming import partition_set
from entropylong_assets.orchestration.retirement import (
    remember_partitions,
    retire_deleted_partitions,
)
from entropylong_assets.orchestration.shard_batches import shards_of_run
from entropylong_assets.project import open_store
from entropylong_assets.settings.section import Settings, fingerprint
from entropylong_assets.stages.corpus.listing import describe_passed_over
from entropylong_assets.stages.corpus.shards import (
    Shard,
    ShardPlan,
    load_plan,
    replan,
    save_plan,
)
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.storage.tables import TableStore

ACTIVE = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_NAMED = 5


@dataclass(frozen=True)
class Scan:
    """What a scan of the sources found."""

    plan: ShardPlan
    unregistered: tuple[str, ...]
    """Shards that are no partitions yet."""
    renewed: tuple[str, ...]
    """Known shards whose files have changed."""
    retired: tuple[str, ...] = ()
    """Shards whose partitions were deleted in Dagster, which retires them."""

    @property
    def requests(self) -> list[dg.RunRequest]:
        """A run for each new and each changed shard, once per version of its files."""
        wanted = {*self.unregistered, *self.renewed}
        return [
            dg.RunRequest(run_key=run_key(shard), partition_key=shard.key)
            for shard in self.plan.shards
            if shard.key in wanted
        ]

    @property
    def message(self) -> str:
        """One line for people."""
        parts = [
            f"{what}: {few(names, _NAMED)} ({len(names):,})"
            for what, names in (
                ("new shards", self.unregistered),
                ("changed files", self.plan.changed),
                ("shards to be read again", self.renewed),
                ("retired, as their partitions were deleted", self.retired),
                ("missing files (their shards keep their data)", self.plan.missing),
                ("files that several sources have", self.plan.shared),
            )
            if names
        ]
        parts = parts or [f"nothing new in {len(self.plan.shards):,} shards"]
        if self.plan.passed_over:
            parts.append(f"passed over: {describe_passed_over(self.plan.passed_over)}")
        return "; ".join(parts)


def run_key(shard: Shard) -> str:
    """Return a key that changes whenever a scan finds the files of a shard changed.

    So each change is requested once, even if it restores earlier content.
    """
    content = shard.model_dump(mode="json", exclude={"position", "corpus_rows"})
    return f"{shard.key}@{fingerprint(content)}"


def shards_without_files(plan: ShardPlan, store: TableStore) -> set[str]:
    """Shards that have no data and can't be made, since their files are missing."""
    missing = set(plan.missing_shards)
    return missing - set(store.shards(CORPUS_DOCUMENTS)) if missing else missing


def scan(corpus: Settings, instance: dg.DagsterInstance, max_new_files: int | None = None) -> Scan:
    """Look at all sources and save the plan with what is new and changed.

    A shard whose partition was deleted in Dagster is retired.
    A shard counts as new until the instance knows its partition, so that none is lost if a scan
    dies after saving. Raises CorpusError, as `plan_shards` and `save_plan` do.
    """
    store = open_store(corpus)
    retired = retire_deleted_partitions(corpus, instance)
    before = load_plan(store)
    plan = replan(corpus, before, accept_changes=True, max_new_files=max_new_files)
    if (plan.shards, plan.empty) != (before.shards, before.empty):
        save_plan(store, plan)
    registered = set(instance.get_dynamic_partitions(partition_set(corpus)))
    not_yet = registered | shards_without_files(plan, store)
    return Scan(
        plan=plan,
        retired=retired,
        unregistered=tuple(s.key for s in plan.shards if s.key not in not_yet),
        renewed=tuple(
            new.key
            for old, new in zip(before.shards, plan.shards, strict=False)
            if old != new and new.key in registered
        ),
    )


def plan_without_saving(corpus: Settings) -> ShardPlan:
    """List all sources and plan the shards of new files too, without registering any.

    Raises CorpusError, as `plan_shards` does.
    """
    return replan(corpus, load_plan(open_store(corpus)))


def register(corpus: Settings, result: Scan, instance: dg.DagsterInstance) -> None:
    """Add the partitions of new shards."""
    if result.unregistered:
        instance.add_dynamic_partitions(partition_set(corpus), list(result.unregistered))
        remember_partitions(corpus, instance)


def busy_shards(settings: Settings, instance: dg.DagsterInstance) -> set[str]:
    """Shards with an active run of any stage of this corpus or dataset."""
    runs = instance.get_runs(dg.RunsFilter(statuses=ACTIVE))
    return {
        shard
        for run in runs
        for shard in shards_of_run(run, partition_set(settings), instance)
        if run.asset_selection is None
        or any(key.path[0] in _names(settings) for key in run.asset_selection)
    }


def _names(settings: Settings) -> set[str]:
    corpus = getattr(settings, "corpus", settings)
    return {settings.name, corpus.name}
