"""Writing a shard's rows to the LanceDB table, beside any number of other writers.

The rows are written as fragments that no version of the table refers to. One short commit then adds
them and removes the shard's former rows: a reader sees the old shard or the new one, whole.

Every commit of a shard also lists the table's first fragment as updated, without changing it. Two
commits that were made from the same version therefore always conflict, even if both add a shard
that is new: Lance lets the first pass, and the other starts again from the newer version. Without
this, two writers of a new shard would both add their rows. A table without fragments is overwritten
instead, which Lance allows only if there was no other commit since. No lock is needed, on a disk or
in object storage, and a writer that is killed holds up no other.

A fragment that a shard's commit adds holds rows of this shard only. Compaction joins fragments, so
that some hold rows of several shards: of these, the rows of a rewritten shard are deleted.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from lance import LanceOperation
from lance.commit import CommitConflictError
from lance.fragment import FragmentMetadata, LanceFragment, write_fragments

from entropylong_assets.stages.embeddings.connection import TABLE, quoted, table_uri
from entropylong_assets.storage.object_storage import lance_options

COMMIT_SECONDS = 600
"""Time after which a writer that always loses to others gives up."""

_LONGEST_PAUSE_SECONDS = 1.0
_SHARD = "shard"  # of a transaction's properties


class ShardConflictError(RuntimeError):
    """A commit conflict that can't be resolved here. The step is tried again."""


def open_dataset(corpus_uri: str, version: int | None = None) -> lance.LanceDataset:
    """Open the table of a corpus by Lance itself: a version of it, or the newest."""
    options = lance_options(corpus_uri)
    return lance.dataset(
        f"{table_uri(corpus_uri)}/{TABLE}.lance", version=version, storage_options=options
    )


def first_fragment(dataset: lance.LanceDataset) -> LanceFragment | None:
    """Return the fragment that every commit of a shard lists as updated."""
    return min(dataset.get_fragments(), key=lambda fragment: fragment.fragment_id, default=None)


def shards_committed(dataset: lance.LanceDataset, after: int) -> set[str]:
    """Return the shards that were written after a version, up to the one that is open."""
    versions = range(after + 1, dataset.version + 1)
    return {shard for version in versions if (shard := _shard_of_commit(dataset, version))}


def _shard_of_commit(dataset: lance.LanceDataset, version: int) -> str | None:
    """Return the shard whose commit made a version; None if another operation made it."""
    try:
        transaction = dataset.read_transaction(version)
    except TypeError as error:
        # pylance 14 can't read a compaction of indexed fragments. A shard's commit is none.
        if "RewrittenIndex" not in str(error):
            raise
        return None
    return ((transaction and transaction.transaction_properties) or {}).get(_SHARD)


def rows_per_fragment(
    dataset: lance.LanceDataset, shard: str, fragments: Sequence[LanceFragment]
) -> dict[int, int]:
    """Count the rows of a shard by the number of the fragment; fragments without any are left out.

    Reads the column `shard` without an index: rows that an index missed would stay beside the new
    ones.
    """
    scanner = dataset.scanner(
        columns=[],
        filter=rows_of_shard(shard),
        with_row_address=True,
        use_scalar_index=False,
        fragments=fragments,
    )
    rows: dict[int, int] = {}
    for batch in scanner.to_batches():
        ids, counts = np.unique(batch["_rowaddr"].to_numpy() >> 32, return_counts=True)
        for fragment_id, count in zip(ids.tolist(), counts.tolist(), strict=True):
            rows[fragment_id] = rows.get(fragment_id, 0) + count
    return rows


def rows_of_shard(shard: str) -> str:
    """SQL condition that is true for the rows of a shard."""
    return f"{_SHARD} IN {quoted([shard])}"


def data_files(fragments: Iterable[Any]) -> set[str]:
    """Paths of the files of these fragments."""
    return {file.path for fragment in fragments for file in fragment.data_files()}


class ShardCommit:
    """New rows of one shard: `write` writes them to the table's folder, `commit` makes them
    visible."""

    def __init__(self, corpus_uri: str, shard: str) -> None:
        self._dataset = open_dataset(corpus_uri)
        self._shard = shard
        self._without: set[str] = set()  # data files that hold no row of the shard
        self._written: list[FragmentMetadata] = []
        self._find()  # before the rows are computed, so that `commit` reads new fragments only

    def write(self, batches: Iterable[pa.RecordBatch]) -> int:
        """Write rows, all of this shard, to new fragments; return their number.

        Raises what `batches` raises; the files that were written until then are removed.
        """
        failure: Exception | None = None

        def guarded() -> Iterator[pa.RecordBatch]:
            nonlocal failure
            try:
                yield from batches
            except Exception as error:
                failure = error
                raise

        reader = pa.RecordBatchReader.from_batches(self._dataset.schema, guarded())
        try:
            written = write_fragments(reader, self._dataset)
        except Exception:
            if failure is not None:  # Lance wraps it, traceback and all, in an error of its own
                raise failure from None
            raise
        self._written += written
        return sum(fragment.physical_rows for fragment in written)

    def commit(self, added_to: int | None = None) -> int:
        """Replace the shard's rows by those written, in one version; return its number.

        added_to: version to whose rows of the shard those written are added instead. Raises
        ShardConflictError if the shard was written after that version, or if others
        are faster for `COMMIT_SECONDS`.
        """
        deadline = time.monotonic() + COMMIT_SECONDS
        pause = 0.02
        while True:
            self._dataset.checkout_latest()
            present = self._find()
            if self._written and data_files(f for f, _ in present) >= data_files(self._written):
                return int(self._dataset.version)  # a try succeeded although it raised an error
            try:
                if added_to is None:
                    return self._commit(present)
                if self._shard in shards_committed(self._dataset, added_to):
                    raise ShardConflictError(self._conflict("another process has written it too"))
                return self._commit([])
            except CommitConflictError:
                if time.monotonic() > deadline:
                    others = f"other writers were faster for {COMMIT_SECONDS} seconds"
                    raise ShardConflictError(self._conflict(others)) from None
            time.sleep(pause * random.random())  # noqa: S311, no secret
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _commit(self, replaced: list[tuple[LanceFragment, int]]) -> int:
        first = first_fragment(self._dataset)
        if not self._written and not replaced:
            return int(self._dataset.version)
        operation: Any
        if first is None:
            operation = LanceOperation.Overwrite(self._dataset.schema, self._written)
            retries = 0  # with any, it would overwrite what another process has just added
        else:
            removed, updated = [], []
            for fragment, rows in replaced:
                if rows == fragment.count_rows():
                    removed.append(fragment.fragment_id)
                    continue
                rest = fragment.delete(rows_of_shard(self._shard))
                assert rest is not None, "the fragment holds rows of other shards"
                updated.append(rest)
            if first.fragment_id not in {*removed, *(fragment.id for fragment in updated)}:
                updated.append(first.metadata)
            operation = LanceOperation.Update(removed, updated, self._written)
            retries = 20  # if newer versions were committed that do not conflict
        transaction = lance.Transaction(
            self._dataset.version, operation, transaction_properties={_SHARD: self._shard}
        )
        committed = lance.LanceDataset.commit(self._dataset, transaction, max_retries=retries)
        return int(committed.version)

    def _find(self) -> list[tuple[LanceFragment, int]]:
        """Return the fragments that hold rows of the shard, with the number of these rows.

        Reads only fragments that were not seen before.
        """
        fragments = [
            f for f in self._dataset.get_fragments() if not data_files([f]) <= self._without
        ]
        if not fragments:
            return []
        rows = rows_per_fragment(self._dataset, self._shard, fragments)
        self._without |= data_files(f for f in fragments if f.fragment_id not in rows)
        return [(f, rows[f.fragment_id]) for f in fragments if f.fragment_id in rows]

    def _conflict(self, why: str) -> str:
        return (
            f"LanceDB table {self._dataset.uri}: commit conflict: shard {self._shard}: {why}; "
            "materialize it again"
        )
