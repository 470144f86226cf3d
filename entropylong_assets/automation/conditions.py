"""Declarative automation: how a new shard flows to samples by itself.

Attached by asset key in one place (`definitions.py`), evaluated by the sensor `carry_new_shards`.
A shard's asset is requested when it is missing, or when what it reads was made anew with other
content; a changed setting or a new `embedding_index` alone recomputes no old shard.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

import dagster as dg
from dagster._core.definitions.declarative_automation.automation_context import AutomationContext
from dagster._core.definitions.declarative_automation.operators import AndAutomationCondition

from entropylong_assets.storage.tables import WHOLE, TableStore

_C = dg.AutomationCondition
_INDEX = dg.AssetSelection.assets("embedding_index")


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
        partitions = {dg.AssetKeyPartitionKey(context.key, shard) for shard in found}
        view = context.asset_graph_view
        return dg.AutomationResult(
            context, view.get_asset_subset_from_asset_partitions(context.key, partitions)
        )


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
    """All inputs are there, have passed their blocking checks, and are not being made."""
    return (
        ~_C.any_deps_missing()
        & ~_C.any_deps_in_progress()
        & _C.all_deps_blocking_checks_passed()
        & ~_C.in_progress()
    )


def _not_tried() -> dg.AutomationCondition:
    """Missing, and the last attempt did not fail: a failed shard waits for a hand or new input."""
    return (_C.missing() & ~_C.execution_failed()).with_label("missing_and_not_failed")


def _each_shard() -> AndAutomationCondition:
    return (_not_tried() | _inputs_changed().since_last_handled()) & _ready()


def _once_a_batch() -> AndAutomationCondition:
    """For an asset over all shards: something is new, and the shards before it have settled.

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
    something = _C.any_deps_match(_C.newly_updated()).since_last_handled() | _not_tried()
    there = _C.any_deps_match(~_C.missing()).with_label("a_shard_is_there")
    return something & there & settled & ~_C.in_progress()


def conditions(data_uri: str) -> Mapping[str, dg.AutomationCondition]:
    """The condition of each asset that follows by itself, by asset key.

    `corpus_documents` has none: the scan of the sources asks for its runs.
    """
    return {
        "chunk_embeddings": _each_shard().with_label("shard_follows"),
        "entropy_scores": _each_shard().with_label("shard_follows"),
        "embedding_index": _once_a_batch().with_label("once_a_batch"),
        "candidate_contexts": (_each_shard() & InIndex(data_uri)).with_label("shard_follows"),
        "verified_dependencies": _each_shard().with_label("shard_follows"),
        "long_context_samples": _each_shard().with_label("shard_follows"),
        "training_dataset": _once_a_batch().with_label("once_a_batch"),
        "pipeline_report": _once_a_batch().with_label("once_a_batch"),
    }
