"""The vector index of the LanceDB table: segments that share their centroids.

A segment covers whole fragments, and no two cover the same one. Any number of processes build
segments at the same time, each for fragments of its own, and commit them: Lance searches all
segments of an index and merges the results. Rows of new fragments get new segments. Centroids are
trained once, by the first process that needs them.

A query compares the centroids of every segment, so each segment makes it slower. `complete` merges
segments of type `ivf_flat`: the rows of a partition are copied, and none is compared with centroids
again. Lance can't merge the other types: each of their segments has a quantizer of its own.

Lance refuses a commit if another index or a compaction was committed after the version that the
segment was built from. Then the fragments are looked up again: a segment is committed only if all
its fragments are still in the table and no other segment covers one. A segment that is discarded,
or whose process is killed, leaves only files that no version refers to; `compaction` removes them.

Legend: P partitions, E dimensions.
"""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import lance
from lance.commit import CommitConflictError
from lance.fragment import LanceFragment

from entropylong_assets.stages.embeddings.centroids import (
    Centroids,
    drop_other_generations,
    load_or_train,
)
from entropylong_assets.stages.embeddings.index_size import MIN_ROWS_PER_PARTITION
from entropylong_assets.stages.embeddings.shard_commits import (
    COMMIT_SECONDS,
    ShardConflictError,
    data_files,
    open_dataset,
    rows_per_fragment,
)

VECTOR_INDEXES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ivf_flat": ("IVF_FLAT", {}),
    "ivf_sq": ("IVF_SQ", {}),
    "ivf_rq": ("IVF_RQ", {"num_bits": 1}),
}
"""Name and options in Lance of each type of index."""

_MERGEABLE = frozenset({"IVF_FLAT"})
_COLUMN = "vector"
_ATTEMPTS = 5


class Segments(NamedTuple):
    """The index of a table, or what one step has added to it."""

    centroids: Centroids
    number: int
    """Segments of the whole index."""
    rows_added: int = 0
    """Rows that were indexed now."""
    added: str = ""
    """UUID of the segment that holds them."""
    rows_left: int = 0
    """Rows that were too few for a segment of their own."""


class SegmentedIndex:
    """The index of one type and generation over the table of a corpus."""

    def __init__(
        self, corpus_uri: str, kind: str, generation: int = 0, device: str = "cpu"
    ) -> None:
        """kind: a key of `VECTOR_INDEXES`. device: where centroids are trained if needed."""
        self._corpus_uri, self._generation, self._device = corpus_uri, generation, device
        self._type, self._options = VECTOR_INDEXES[kind]
        self.name = f"{_COLUMN}_{kind}_{generation}"

    def index_shard(self, shard: str) -> Segments:
        """Commit a segment over the fragments of a shard that no segment covers.

        If they have fewer than `MIN_ROWS_PER_PARTITION` rows per partition, none is built:
        `complete` indexes such shards together. Raises ShardConflictError if others keep changing
        the fragments.
        """
        centroids = load_or_train(self._corpus_uri, self._generation, self._device)
        least = MIN_ROWS_PER_PARTITION * len(centroids.vectors_PE)
        for _ in range(_ATTEMPTS):
            dataset = open_dataset(self._corpus_uri)
            own = self._without_segment(dataset, shard)
            added = _count(own)
            if added < least:
                return Segments(centroids, len(self._covered(dataset)), rows_left=added)
            segment = self._build(dataset, own, centroids)
            if self._commit(dataset, segment, own, ()):
                return Segments(centroids, len(self._covered(dataset)), added, segment.uuid)
        raise self._conflict()

    def complete(self) -> Segments:
        """Commit one segment over all rows that no segment covers, and drop any other index.

        Segments with fewer than `MIN_ROWS_PER_PARTITION` rows per partition are joined with them.
        Then segments are merged, until each has more than twice the rows of all later ones. Rows
        that other processes write meanwhile may be left out. Raises ShardConflictError if others
        keep changing the fragments.
        """
        centroids = load_or_train(self._corpus_uri, self._generation, self._device)
        least = MIN_ROWS_PER_PARTITION * len(centroids.vectors_PE)
        for _ in range(_ATTEMPTS):
            dataset = open_dataset(self._corpus_uri)
            covered, fragments = self._covered(dataset), dataset.get_fragments()
            if not _without(fragments, covered.values()):
                self._drop_others(dataset)
                self._merge(dataset)
                return Segments(centroids, len(self._covered(dataset)))
            joined = [
                uuid
                for uuid, ids in covered.items()
                if _count(f for f in fragments if f.fragment_id in ids) < least
            ]
            kept = [ids for uuid, ids in covered.items() if uuid not in joined]
            rest = _without(fragments, kept)
            segment = self._build(dataset, rest, centroids)
            if self._commit(dataset, segment, rest, joined):
                self._drop_others(dataset)
                self._merge(dataset)
                added = _count(rest)
                return Segments(centroids, len(self._covered(dataset)), added, segment.uuid)
        raise self._conflict()

    def unindexed_rows(self, version: int) -> int:
        """Return the number of rows of a version that no segment covers."""
        return _count(self._without_segment(open_dataset(self._corpus_uri, version)))

    def rows_without_segment(self, shard: str) -> int:
        """Return the number of rows, in the newest version, of fragments of a shard without one."""
        return _count(self._without_segment(open_dataset(self._corpus_uri), shard))

    def _without_segment(
        self, dataset: lance.LanceDataset, shard: str | None = None
    ) -> list[LanceFragment]:
        """Return the fragments that no segment covers: all, or those with rows of a shard."""
        rest = _without(dataset.get_fragments(), self._covered(dataset).values())
        if shard is None or not rest:
            return rest
        rows = rows_per_fragment(dataset, shard, rest)
        return [fragment for fragment in rest if fragment.fragment_id in rows]

    def _covered(self, dataset: lance.LanceDataset) -> dict[str, set[int]]:
        """Numbers of the fragments that each segment covers, by its UUID."""
        return {
            index["uuid"]: set(index["fragment_ids"])
            for index in dataset.list_indices()
            if index["name"] == self.name
        }

    def _build(
        self, dataset: lance.LanceDataset, fragments: Sequence[LanceFragment], centroids: Centroids
    ) -> Any:
        return dataset.create_index_uncommitted(
            _COLUMN,
            self._type,
            name=self.name,
            metric="cosine",
            replace=True,  # or Lance refuses to build a further segment
            num_partitions=len(centroids.vectors_PE),
            ivf_centroids=centroids.vectors_PE,
            fragment_ids=[fragment.fragment_id for fragment in fragments],
            **self._options,
        )

    def _commit(
        self,
        dataset: lance.LanceDataset,
        segment: Any,
        fragments: Sequence[LanceFragment],
        joined: Collection[str],
    ) -> bool:
        """Add a segment to the index, in place of those it joins; open the version that has it.

        Returns False if a fragment was removed, or another segment covers one.
        """
        deadline = time.monotonic() + COMMIT_SECONDS
        while time.monotonic() < deadline:
            dataset.checkout_latest()
            others = [ids for uuid, ids in self._covered(dataset).items() if uuid not in joined]
            free = data_files(_without(dataset.get_fragments(), others))
            if not data_files(fragments) <= free:
                return False
            try:
                dataset.commit_existing_index_segments(self.name, _COLUMN, [segment])
            except CommitConflictError:
                time.sleep(0.05 + 0.2 * random.random())  # noqa: S311, no secret
            else:
                dataset.checkout_latest()
                return True
        return False

    def _merge(self, dataset: lance.LanceDataset) -> None:
        """Merge the last segments, if Lance can and they are many; open the version that has them.

        If another process changes the table meanwhile, all stay: the next `complete` merges them.
        """
        if self._type not in _MERGEABLE:
            return
        rows = {f.fragment_id: f.count_rows() for f in dataset.get_fragments()}
        sizes = [sum(rows.get(i, 0) for i in ids) for ids in self._covered(dataset).values()]
        if (number := _merged_segments(sizes)) < 2:
            return
        try:
            dataset.optimize.optimize_indices(index_names=[self.name], num_indices_to_merge=number)
        except (CommitConflictError, OSError) as error:  # of a commit, Lance may raise either
            if "conflict" not in str(error).lower():
                raise
        dataset.checkout_latest()

    def _drop_others(self, dataset: lance.LanceDataset) -> None:
        for index in dataset.describe_indices():
            if index.field_names == [_COLUMN] and index.name != self.name:
                dataset.drop_index(index.name)
        drop_other_generations(self._corpus_uri, self._generation)
        dataset.checkout_latest()

    def _conflict(self) -> ShardConflictError:
        return ShardConflictError(
            f"LanceDB table {self._corpus_uri}: commit conflict: other processes have changed the "
            "fragments while they were indexed; materialize this again"
        )


def _merged_segments(sizes: Sequence[int]) -> int:
    """Return how many of the last segments are merged; sizes: their rows, in order of age.

    Afterwards each segment has more than twice the rows of all later ones. So their number grows
    with the logarithm of the rows, and a row is copied about as often.
    """
    number, total = 0, 0
    for later, size in enumerate(reversed(sizes)):
        if size <= 2 * total or not total:
            number = later + 1
        total += size
    return number


def _without(
    fragments: Iterable[LanceFragment], covered: Iterable[Collection[int]]
) -> list[LanceFragment]:
    numbers = {number for ids in covered for number in ids}
    return [fragment for fragment in fragments if fragment.fragment_id not in numbers]


def _count(fragments: Iterable[LanceFragment]) -> int:
    return sum(fragment.count_rows() for fragment in fragments)
