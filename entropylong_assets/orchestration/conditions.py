"""Declarative automation: how a new shard flows to samples by itself.

Attached by asset key in one place (`definitions.py`), evaluated by the sensor `carry_new_shards`.
A shard's asset is requested when it is missing, or when what it reads was made anew with other
content; a changed setting or a new `embedding_index` alone recomputes no old shard.

The conditions of our own look into our tables and the instance, so that the sensor is evaluated by
the code server (`use_user_code_server`).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor

import dagster as dg
from dagster._core.definitions.declarative_automation.automation_context import AutomationContext
from dagster._core.definitions.declarative_automation.operators import AndAutomationCondition

from entropylong_assets.orchestration.health import blocking_checks, unhealthy_shards
from entropylong_assets.orchestration.partitions import corpus_shard
from entropylong_assets.stages.corpus.shards import load_plan
from entropylong_assets.storage.tables import WHOLE, TableStore

_C = dg.AutomationCondition
_INDEX = dg.AssetSelection.assets("embedding_index")

THREADS = 16
"""Manifests read at once."""


class InIndex(dg.AutomationCondition[dg.AssetKey]):
    """True for shards whose chunks, as they are now, are in `embedding_index`.

    The index leaves out shards that failed their checks, and takes in new ones once a batch: a
    shard whose candidates were searched before would never meet its own source's documents.
    """

    def __init__(self, data_uri: str) -> None:
        self._data_uri = data_uri

    @property
    def name(self) -> str:
        return "chunks_are_in_embedding_index"

    def evaluate(self, context: AutomationContext[dg.AssetKey]) -> dg.AutomationResult[dg.AssetKey]:
        asked = context.candidate_subset
        keys: Set[str] = frozenset()
        if not asked.is_empty:
            keys = asked.expensively_compute_partition_keys()
        found = in_index(TableStore(self._data_uri), keys)
        assert context.partitions_def is not None
        return dg.AutomationResult(
            context,
            context.asset_graph_view.get_subset_from_partition_keys(
                context.key, context.partitions_def, found
            ),
        )


class StillMissing(dg.AutomationCondition[dg.AssetKey]):
    """False for shards that were missing when the tick began and are there by now.

    Dagster reads what was made before it reads what is being made: a shard whose run ends between
    the two is neither there nor in progress, and would be asked for again.
    """

    @property
    def name(self) -> str:
        return "not_made_meanwhile"

    async def evaluate(  # type: ignore[override]
        self, context: AutomationContext[dg.AssetKey]
    ) -> dg.AutomationResult[dg.AssetKey]:
        asked, view = context.candidate_subset, context.asset_graph_view
        missing = await view.compute_missing_subset(key=context.key, from_subset=asked)
        if missing.is_empty:
            return dg.AutomationResult(context, asked)
        there = view.instance.get_materialized_partitions(context.key)
        made = missing.expensively_compute_partition_keys() & there
        assert context.partitions_def is not None
        return dg.AutomationResult(
            context,
            asked.compute_difference(
                view.get_subset_from_partition_keys(context.key, context.partitions_def, made)
            ),
        )


class IndexBehind(dg.AutomationCondition[dg.AssetKey]):
    """True when `embedding_index`, made now, would hold other shards or other chunks.

    Read from the tables and the checks, not from what has happened since the last tick: an
    update that lands while the index is being made would else be missed.
    """

    def __init__(self, data_uri: str, gates: Sequence[dg.AssetCheckKey]) -> None:
        self._data_uri, self._gates = data_uri, tuple(gates)
        self._known: tuple[object, bool] = (None, False)

    @property
    def name(self) -> str:
        return "healthy_shards_differ_from_embedding_index"

    def evaluate(self, context: AutomationContext[dg.AssetKey]) -> dg.AutomationResult[dg.AssetKey]:
        there = context.asset_graph_view.instance
        keys = [dg.AssetKey(name) for name in ("chunk_embeddings", "embedding_index")]
        store, unhealthy = TableStore(self._data_uri), left_out(there, self._gates)
        # The manifests are read again only when something was made or a check changed.
        made = [
            r.asset_entry.last_materialization_storage_id for r in there.get_asset_records(keys)
        ]
        basis = (tuple(made), tuple(unhealthy.items()))
        if self._known[0] != basis:
            self._known = basis, bool(index_behind(store, unhealthy))
        view, behind = context.asset_graph_view, self._known[1]
        return dg.AutomationResult(
            context,
            context.candidate_subset if behind else view.get_empty_subset(key=context.key),
        )


def left_out(there: dg.DagsterInstance, gates: Sequence[dg.AssetCheckKey]) -> Mapping[str, str]:
    """Registered shards that the index leaves out, and why."""
    return unhealthy_shards(there, gates, there.get_dynamic_partitions(str(corpus_shard.name)))


def index_behind(store: TableStore, unhealthy: Container[str]) -> list[str]:
    """Shards that the index would take in, renew or leave out if it were made now."""
    indexed = indexed_versions(store)
    shards = [shard.key for shard in load_plan(store).shards if shard.key not in unhealthy]
    with ThreadPoolExecutor(THREADS) as pool:
        manifests = list(pool.map(lambda s: store.manifest("chunk_embeddings", s), shards))
    wanted = {m.shard: m.data_version for m in manifests if m}
    return sorted(s for s in wanted.keys() | indexed.keys() if wanted.get(s) != indexed.get(s))


def indexed_versions(store: TableStore) -> dict[str, str]:
    """Data version of chunk_embeddings by shard, as the index holds them; empty without one."""
    if store.manifest("embedding_index") is None:
        return {}
    columns = ["shard", "data_version"]
    return dict(store.read("embedding_index", WHOLE, "shards", columns).iter_rows())


def in_index(store: TableStore, shards: Set[str]) -> set[str]:
    """Those of the shards whose present chunks the index holds."""
    indexed = indexed_versions(store) if shards else {}
    return {
        shard
        for shard in shards & set(indexed)
        if (manifest := store.manifest("chunk_embeddings", shard))
        and manifest.data_version == indexed[shard]
    }


def _inputs_changed() -> dg.AutomationCondition:
    """What the shard's asset reads was made anew with other content, by a run without it."""
    changed = _C.data_version_changed() & ~_C.executed_with_root_target()
    return _C.any_deps_match(changed.with_label("content_changed")).ignore(_INDEX)


def _ready() -> dg.AutomationCondition:
    """All inputs are there, have passed their blocking checks, and are not being made.

    Inputs that this tick requests come into the same run, where their checks hold back the rest.
    """
    passed = _C.all_checks_match(_C.check_passed(), blocking_only=True)
    return (
        ~_C.any_deps_missing()
        & ~_C.any_deps_in_progress()
        & _C.all_deps_match(passed | _C.will_be_requested()).with_label("inputs_passed_checks")
        & ~_C.in_progress()
    )


def _not_tried() -> dg.AutomationCondition:
    """Missing, and the last attempt did not fail: a failed shard waits for a hand or new input."""
    return (_C.missing() & ~_C.execution_failed()).with_label("missing_and_not_failed")


def _each_shard() -> AndAutomationCondition:
    return (_not_tried() | _inputs_changed().since_last_handled()) & _ready() & StillMissing()


def _once_a_batch(something: dg.AutomationCondition) -> AndAutomationCondition:
    """For an asset over all shards: `something` is new, and the shards before it have settled.

    Which of them are complete and healthy the asset looks up itself; a failed shard does not
    hold it back.
    """
    coming = _not_tried() & _ready()
    settled = (
        ~_C.any_deps_match(_C.in_progress()).with_label("a_shard_is_being_made")
        & ~_C.any_deps_match(_C.any_checks_match(_C.in_progress())).with_label("checks_running")
        & ~_C.any_deps_match(_C.any_deps_match(_C.in_progress())).with_label("a_shard_is_coming")
        & ~_C.any_deps_match(coming).with_label("a_shard_is_next")
    )
    there = _C.any_deps_match(~_C.missing()).with_label("a_shard_is_there")
    updated = _C.any_deps_match(_C.newly_updated()).since_last_handled()
    # A failed attempt waits for a hand or for new input.
    return there & settled & ~_C.in_progress() & (~_C.execution_failed() | updated) & something


def _new_input() -> dg.AutomationCondition:
    return _not_tried() | _C.any_deps_match(_C.newly_updated()).since_last_handled()


def conditions(
    data_uri: str, checks: Iterable[dg.AssetChecksDefinition]
) -> Mapping[str, dg.AutomationCondition]:
    """The condition of each asset that follows by itself, by asset key.

    `corpus_documents` has none: the scan of the sources asks for its runs. `checks` are those
    that decide which shards the index takes in.
    """
    behind = IndexBehind(data_uri, blocking_checks(checks))
    return {
        "chunk_embeddings": _each_shard().with_label("shard_follows"),
        "entropy_scores": _each_shard().with_label("shard_follows"),
        "embedding_index": _once_a_batch(behind).with_label("once_a_batch"),
        "candidate_contexts": (_each_shard() & InIndex(data_uri)).with_label("shard_follows"),
        "verified_dependencies": _each_shard().with_label("shard_follows"),
        "long_context_samples": _each_shard().with_label("shard_follows"),
        "training_dataset": _once_a_batch(_new_input()).with_label("once_a_batch"),
    }
