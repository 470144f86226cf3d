"""Keeping the LanceDB table small: few fragments, and no files that nothing needs.

Safe beside readers and writers. A version that is tagged, or younger than `KEPT_FOR`, keeps its
files. A fragment that a shard's writer changes meanwhile is left as it is, and the writer never
waits.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import lance
from lance.optimize import Compaction, RewriteResult

from entropylong_assets.stages.embeddings.connection import (
    LOOKUP_COLUMNS,
    TABLE,
    open_existing,
    table_uri,
)
from entropylong_assets.stages.embeddings.retention import KEEP_DAYS
from entropylong_assets.stages.embeddings.shard_commits import first_fragment, open_dataset
from entropylong_assets.storage.object_storage import open_uri

KEPT_FOR = timedelta(days=KEEP_DAYS)
"""Age from which an untagged version is removed, and a file that belongs to no version."""


_INDICES = "_indices"  # folder with a folder per index or segment, named by its UUID


class Compacted(NamedTuple):
    """What a compaction did."""

    fragments_before: int
    fragments_after: int
    fragments_left: int
    """Small fragments that a writer changed meanwhile, so that they were not joined."""
    versions_removed: int
    files_swept: int
    """Files of writers that were killed, or lost to others, before their commit."""
    bytes_removed: int

    @property
    def message(self) -> str:
        left = (
            f", {self.fragments_left:,} not joined because a writer changed them"
            if self.fragments_left
            else ""
        )
        return (
            f"{self.fragments_before:,} fragments before, {self.fragments_after:,} now{left}; "
            f"{self.versions_removed:,} old versions and {self.files_swept:,} files of unfinished "
            f"writers removed ({self.bytes_removed:,} bytes)"
        )


def compact(corpus_uri: str, kept_for: timedelta = KEPT_FOR) -> Compacted:
    """Join small fragments, add rows to the lookup indexes, remove old versions and stray files.

    kept_for: what is younger is kept; if shorter than the time of a step, nothing else may run.
    Raises TableError if there is no table.
    """
    open_existing(corpus_uri)
    dataset = open_dataset(corpus_uri)
    before = len(dataset.get_fragments())
    names = [i["name"] for i in dataset.list_indices() if i["fields"][0] in LOOKUP_COLUMNS]
    if names:  # first, since Lance joins no indexed fragment with one that is not
        dataset.optimize.optimize_indices(index_names=names)
        dataset.checkout_latest()
    left = _join_fragments(dataset)
    dataset.checkout_latest()
    after = len(dataset.get_fragments())
    removed = dataset.cleanup_old_versions(kept_for, error_if_tagged_old_versions=False)
    files, size = _sweep(corpus_uri, kept_for)
    return Compacted(before, after, left, removed.old_versions, files, removed.bytes_removed + size)


def _join_fragments(dataset: lance.LanceDataset) -> int:
    """Join small fragments and those with many deleted rows; return how many could not be.

    The first fragment stays: every commit of a shard conflicts with a change of it.
    """
    first = first_fragment(dataset)
    if first is None:
        return 0
    plan = Compaction.plan(dataset, {"excluded_fragment_ids": [first.fragment_id]})
    done = [task.execute(dataset) for task in plan.tasks]
    if not done or _commit(dataset, done):
        return 0
    one_by_one = zip(plan.tasks, done, strict=True)
    return sum(len(task.fragments) for task, one in one_by_one if not _commit(dataset, [one]))


def _commit(dataset: lance.LanceDataset, done: list[RewriteResult]) -> bool:
    """Replace fragments by joined ones; return False if a writer changed one of them meanwhile."""
    try:
        Compaction.commit(dataset, done)
    except OSError as error:  # Lance has no class for this conflict
        if "commit conflict" in str(error).lower():
            return False
        raise
    return True


def _sweep(corpus_uri: str, kept_for: timedelta) -> tuple[int, int]:
    """Remove files of rows, deletions and indexes of no version; return their number and bytes.

    Lance does this only for files older than 7 days and than its oldest version (lance #8942),
    which a tag may keep forever.
    """
    fs, root = open_uri(f"{table_uri(corpus_uri)}/{TABLE}.lance")
    stray: dict[str, int] = {}
    for folder in ("data", "_deletions", _INDICES):
        if fs.exists(f"{root}/{folder}"):
            listed = fs.find(f"{root}/{folder}", detail=True).items()
            stray |= {path.removeprefix(f"{root}/"): info["size"] for path, info in listed}
    oldest = datetime.now(UTC) - kept_for
    dataset = open_dataset(corpus_uri)  # after the listing: it refers to what was committed since
    _discard_used(stray, dataset)  # the newest version refers to most files
    stray = {path: size for path, size in stray.items() if _is_older(fs, f"{root}/{path}", oldest)}
    older = {v["version"] for v in dataset.versions()} - {dataset.version}
    for number in sorted(older, reverse=True):
        if not stray:
            break
        _discard_used(stray, open_dataset(corpus_uri, number))
    swept = [path for path in stray if _remove(fs, f"{root}/{path}")]
    return len(swept), sum(stray[path] for path in swept)


def _discard_used(stray: dict[str, int], dataset: lance.LanceDataset) -> None:
    """Remove from `stray` the files that a version refers to."""
    indexes = {index["uuid"] for index in dataset.list_indices()}
    for path in [path for path in stray if path.startswith(f"{_INDICES}/")]:
        if path.split("/")[1] in indexes:
            del stray[path]
    for fragment in dataset.get_fragments():
        for file in fragment.data_files():
            stray.pop(f"data/{file.path}", None)
        stray.pop(fragment.deletion_file() or "", None)


def _is_older(fs: Any, path: str, oldest: datetime) -> bool:
    """Whether a file exists and is older than this."""
    try:
        return bool(fs.modified(path).astimezone(UTC) <= oldest)
    except FileNotFoundError:  # another process has removed it
        return False


def _remove(fs: Any, path: str) -> bool:
    """Remove a file; return False if another process was faster."""
    try:
        fs.rm_file(path)
    except FileNotFoundError:
        return False
    return True
