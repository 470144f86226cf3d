"""Retiring shards and sources, taking documents down, and the partitions in Dagster.

What these do to the data follows from their records: see `stages/corpus/removals.py`. This module
also updates the partitions in Dagster, in an order in which the same command or the next scan
completes a killed command: the record is written before a partition is deleted, and a partition is
registered before its record is deleted.

A shard whose partition a user deletes in the UI is retired at the next scan. A new instance has no
partitions either, so each instance stores which ones it had at the last scan.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import dagster as dg

from entropylong_assets.orchestration.naming import partition_set
from entropylong_assets.project import open_store
from entropylong_assets.report.holdings import Holdings, find_doc_ids, find_document
from entropylong_assets.settings.section import Settings, printable
from entropylong_assets.stages.corpus.errors import CorpusError
from entropylong_assets.stages.corpus.shards import load_plan
from entropylong_assets.storage.removals import (
    Kind,
    Removal,
    delete_removal,
    find_removed,
    record_removal,
    record_shards_of,
)

DELETED = "its partition was deleted in Dagster"


def _memory_key(corpus: Settings) -> str:
    return f"entropylong/partitions/{corpus.data_uri}/{partition_set(corpus)}"


def _remembered(corpus: Settings, instance: dg.DagsterInstance) -> set[str]:
    key = _memory_key(corpus)
    return set(json.loads(instance.run_storage.get_cursor_values({key}).get(key, "[]")))


def remember_partitions(corpus: Settings, instance: dg.DagsterInstance) -> None:
    """Store the partitions that the corpus has in this instance now."""
    now = set(instance.get_dynamic_partitions(partition_set(corpus)))
    if now != _remembered(corpus, instance):
        values = {_memory_key(corpus): json.dumps(sorted(now))}
        instance.run_storage.set_cursor_values(values)


def retire_deleted_partitions(corpus: Settings, instance: dg.DagsterInstance) -> tuple[str, ...]:
    """Retire the shards whose partitions were deleted in this instance since the last scan.

    Partitions of shards that were retired elsewhere are deleted. Returns the keys newly retired.
    """
    store, name = open_store(corpus), partition_set(corpus)
    registered = set(instance.get_dynamic_partitions(name))
    active = {shard.key for shard in load_plan(store).shards}
    deleted = tuple(sorted((_remembered(corpus, instance) - registered) & active))
    for shard in deleted:
        record_removal(store, "shard", shard, DELETED, "a user of Dagster")
    removed = find_removed(store)
    for shard in sorted(shard for shard in registered if removed.hides(shard)):
        instance.delete_dynamic_partition(name, shard)
    remember_partitions(corpus, instance)
    return deleted


def retire(
    corpus: Settings,
    name: str,
    instance: dg.DagsterInstance,
    reason: str,
    by: str | None = None,
) -> Removal:
    """Take a shard or a source out of a corpus and its datasets; return the record.

    Its data leaves index, samples and exports when these are materialized again. If it is retired
    already, only completes what a killed command left undone. Raises CorpusError for an unknown
    name.
    """
    removal = record_removal(open_store(corpus), _kind(corpus, name), name, reason, by)
    retire_deleted_partitions(corpus, instance)
    return removal


def bring_back(corpus: Settings, name: str, instance: dg.DagsterInstance) -> list[str]:
    """End the retirement of a shard or source; return the shards that are back.

    Raises CorpusError if it is not retired.
    """
    store, kind = open_store(corpus), _kind(corpus, name)
    plan, removed = load_plan(store), find_removed(store)
    if name not in (removed.shards if kind == "shard" else removed.sources):
        source = name.rpartition("-")[0]
        if kind == "shard" and source in removed.sources:
            raise CorpusError(
                f"shard {name}: its source is retired; bring that back with `entropylong retire "
                f"{source} --undo`"
            )
        raise CorpusError(f"{kind} {name}: it is not retired; see `entropylong retire --list`")
    other = removed.sources if kind == "shard" else removed.shards
    back = [
        shard.key
        for shard in plan.retired
        if name in (shard.key, shard.source) and not other & {shard.key, shard.source}
    ]
    instance.add_dynamic_partitions(partition_set(corpus), back)
    if kind != "document":
        delete_removal(store, kind, name)
    remember_partitions(corpus, instance)
    return back


def retired_shards(corpus: Settings, name: str) -> list[str]:
    """Keys of the retired shards that a name stands for: its own, or those of a source."""
    retired = load_plan(open_store(corpus)).retired
    return [shard.key for shard in retired if name in (shard.key, shard.source)]


@dataclass(frozen=True)
class TakenDown:
    """A document that was taken down, and where it was held."""

    removal: Removal
    held: Holdings

    def lines(self) -> list[str]:
        """What people have to know, one line each."""
        held = self.held
        lines = [f"document {self.removal.name} is taken down: {self.removal.reason}"]
        lines += [f"shard {shard}: stale; materialize it again" for shard in held.shards]
        lines += [f"sample {sample} of dataset {dataset}" for dataset, sample in held.samples]
        lines += [f"export {uri}: delete it" for uri in held.exports]
        lines += [
            f"export {uri}: its formats store no ids, so it may hold the document"
            for uri in held.doubtful_exports
        ]
        nowhere = "no shard, sample or export holds it; it will be refused if it is read"
        return lines if len(lines) > 1 else [*lines, nowhere]


def take_down(
    corpus: Settings,
    datasets: Sequence[Settings],
    document: str,
    reason: str,
    by: str | None = None,
) -> list[TakenDown]:
    """Take documents out of a corpus for good, and find where they are held.

    document: doc_id, or the source's own id, which several documents may have. datasets: those
    whose exports are searched. Raises CorpusError if no document has this external id.
    """
    store, taken = open_store(corpus), []
    for doc_id in find_doc_ids(store, document):
        removal = record_removal(store, "document", doc_id, reason, by)
        # Recorded first: a shard that is read from now on refuses it.
        held = find_document(store, datasets, doc_id)
        record_shards_of(store, doc_id, list(held.shards))
        taken.append(TakenDown(removal, held))
    return taken


def _kind(corpus: Settings, name: str) -> Kind:
    """Whether a name is that of a shard or a source. Raises CorpusError if it is neither."""
    plan = load_plan(open_store(corpus))
    if any(shard.key == name for shard in plan.known):
        return "shard"
    in_use = {shard.source for shard in plan.known} | {source.name for source in corpus.sources}
    if name in {*in_use, *plan.retired_sources}:
        return "source"
    raise CorpusError(
        f"corpus {corpus.name} has no shard or source '{printable(name, 60)}'; its sources are "
        f"{', '.join(sorted(in_use)) or 'none'}"
    )


def knows(corpus: Settings, name: str) -> bool:
    """Whether a corpus has a shard or source of this name."""
    try:
        _kind(corpus, name)
    except CorpusError:
        return False
    return True
