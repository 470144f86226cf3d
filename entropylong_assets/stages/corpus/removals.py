"""What was removed from a corpus, as a determinant of the stages that must not contain it.

A removal is a record in the corpus' folder (`storage/removals.py`) and nothing else. All of its
effects follow from two rules, so that no stage has code for removals of its own, a removal can't be
left half done, and datasets that other settings files define over the corpus follow as well:

- A retired shard is hidden: `TableStore.shards` and `ShardPlan.shards` do not name it. What is made
  over all shards then has other inputs and is stale.
- `Stage.removals` names the removals that a partition was made after. It is part of what determines
  the partition, so the partition is stale after a removal. A partition that was made before one is
  used by no stage over all shards, so that nothing removed is indexed or exported again.

Which stages declare removals? `corpus_documents`: the taken-down documents that the shard held.
`embedding_index` and the stages that draw texts from it: everything removed that it may have held.
The other stages follow through the data versions of their inputs.

`embedding_index` deletes the rows of retired shards from the vector table. The other tables of a
retired shard are kept, so that it can be brought back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from entropylong_assets.stages.stage import Partition
from entropylong_assets.storage.removals import find_removed


def documents_taken_down(partition: Partition) -> Mapping[str, Any]:
    """The documents of the partition's shard that were taken down, sorted; empty if none was.

    Documents that were taken down before the shard was read are not included: they were dropped.
    """
    documents = find_removed(partition.store).documents
    taken_down = sorted(d for d, shards in documents.items() if partition.shard in shards)
    return {"taken_down": taken_down} if taken_down else {}


def removed_from_corpus(partition: Partition) -> Mapping[str, Any]:
    """All that was removed from the corpus after a shard held it, sorted; empty if nothing was."""
    removed = find_removed(partition.store)
    held = {doc_id for doc_id, shards in removed.documents.items() if shards}
    names = sorted({*removed.shards, *removed.sources, *held})
    return {"removed": names} if names else {}
