"""Looking at the sources: which shards are new or changed, and which runs that asks for."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import dagster as dg

from entropylong_assets.orchestration.conditions import THREADS, in_index
from entropylong_assets.orchestration.partitions import PIPELINE, corpus_shard
from entropylong_assets.orchestration.versioning import UPSTREAM
from entropylong_assets.settings.model import Settings, fingerprint
from entropylong_assets.stages.corpus.shards import (
    Shard,
    ShardPlan,
    load_plan,
    plan_shards,
    save_plan,
)
from entropylong_assets.storage.tables import TableStore

_PARTITIONS = str(corpus_shard.name)
_ACTIVE = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_NAMED = 5


@dataclass(frozen=True)
class Scan:
    """What a look at the sources found."""

    plan: ShardPlan
    unregistered: tuple[str, ...]
    """Shards that are no partitions yet."""
    renewed: tuple[str, ...]
    """Known shards whose files have changed."""

    @property
    def requests(self) -> list[dg.RunRequest]:
        """A run of `ingest` for each new and each changed shard, once for each of its versions."""
        wanted = {*self.unregistered, *self.renewed}
        return [
            dg.RunRequest(run_key=run_key(shard), partition_key=shard.key)
            for shard in self.plan.shards
            if shard.key in wanted
        ]

    @property
    def told(self) -> str:
        """One line for people."""
        parts = [
            f"{what}: {_few(names)}"
            for what, names in (
                ("new shards", self.unregistered),
                ("changed files", self.plan.changed),
                ("shards to be read anew", self.renewed),
                ("files gone (their shards keep their data)", self.plan.gone),
            )
            if names
        ]
        return "; ".join(parts) or f"nothing new in {len(self.plan.shards):,} shards"


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more} ({len(names):,})"


def run_key(shard: Shard) -> str:
    """Changes with the files of a shard, so that each version is asked for once."""
    return f"{shard.key}@{fingerprint(shard.model_dump(mode='json', exclude={'position'}))}"


def scan(settings: Settings, there: dg.DagsterInstance, max_new_files: int | None = None) -> Scan:
    """Looks at all sources and saves the plan with what is new and changed.

    A shard counts as new until the instance knows its partition, so that none is lost when a
    scan dies after saving. Raises CorpusError, as `plan_shards` and `save_plan` do.
    """
    store = TableStore(settings.data_uri)
    before = load_plan(store).shards
    plan = plan_shards(settings.corpus, before, accept_changes=True, max_new_files=max_new_files)
    if plan.shards != before:
        save_plan(store, plan)
    registered = set(there.get_dynamic_partitions(_PARTITIONS))
    return Scan(
        plan=plan,
        unregistered=tuple(s.key for s in plan.shards if s.key not in registered),
        renewed=tuple(
            new.key
            for old, new in zip(before, plan.shards, strict=False)
            if old != new and new.key in registered
        ),
    )


def register(scan: Scan, there: dg.DagsterInstance) -> None:
    if scan.unregistered:
        there.add_dynamic_partitions(_PARTITIONS, list(scan.unregistered))


@dataclass(frozen=True)
class Gap:
    """The first asset of a shard that is missing or older than what it reads."""

    shard: str
    asset: str
    versions: str
    """Of what it would read now: each gap is asked for once."""


def find_gaps(
    settings: Settings,
    there: dg.DagsterInstance,
    unhealthy: Mapping[str, Container[str]],
) -> list[Gap]:
    """Gaps of all registered shards, where nothing runs and the blocking checks before passed.

    `unhealthy` has, by asset, the shards that have not passed its blocking checks. Reads a few
    small manifests a shard; heavy ones never.
    """
    store = TableStore(settings.data_uri)
    busy = {
        run.tags.get("dagster/partition") for run in there.get_runs(dg.RunsFilter(statuses=_ACTIVE))
    }
    registered = [s for s in there.get_dynamic_partitions(_PARTITIONS) if s not in busy]
    planned = {shard.key: shard for shard in load_plan(store).shards}
    known = {
        asset: there.get_materialized_partitions(dg.AssetKey(asset))
        for asset in PIPELINE
        if asset != "embedding_index"
    }
    searchable = in_index(store, set(registered))

    def gap(shard: str) -> Gap | None:
        if shard not in planned:
            return None
        versions: dict[str, str] = {}
        for asset, inputs in UPSTREAM.items():
            inputs = tuple(name for name in inputs if name != "embedding_index")
            if any(name not in versions or shard in unhealthy[name] for name in inputs):
                continue
            manifest = store.manifest(asset, shard) if shard in known[asset] else None
            if manifest is None:
                current = False
            elif asset == "corpus_documents":
                read = manifest.determinants.get("shard", {})
                current = read.get("versions") == list(planned[shard].versions)
            else:
                read = manifest.determinants["inputs"]
                current = all(read.get(name) == versions[name] for name in inputs)
            if manifest is not None and current:
                versions[asset] = manifest.data_version
            elif asset != "candidate_contexts" or shard in searchable:
                basis = {name: versions[name] for name in inputs}
                return Gap(shard, asset, fingerprint(basis, run_key(planned[shard])))
        return None

    with ThreadPoolExecutor(THREADS) as pool:
        return [found for found in pool.map(gap, registered) if found]
