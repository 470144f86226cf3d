"""The index of segments, on a real table. Oracle: brute force in NumPy over the rows written."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lance
import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from entropylong_assets.orchestration.errors import is_transient
from entropylong_assets.stages.embeddings import segments
from entropylong_assets.stages.embeddings.centroids import load_or_train
from entropylong_assets.stages.embeddings.compaction import compact
from entropylong_assets.stages.embeddings.segments import SegmentedIndex, _merged_segments
from entropylong_assets.stages.embeddings.shard_commits import ShardConflictError, open_dataset
from entropylong_assets.stages.embeddings.table import ChunkTable, open_table
from entropylong_assets.stages.embeddings.vector_table import Search
from entropylong_assets_tests.stages.embeddings.test_shard_commits import NOW, corpus_uri
from entropylong_assets_tests.stages.embeddings.test_table import (
    World,
    batch,
    docs_of,
    filled,
    new_table,
    store_in,
    unit_vectors,
    vectors_of,
)

KINDS = ["ivf_flat", "ivf_sq", "ivf_rq"]
SIZES = {"a": 300, "b": 250, "c": 350}


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of a thousand rows have segments of a hundred."""
    monkeypatch.setattr(segments, "MIN_ROWS_PER_PARTITION", 4)


def rows(shard: str, n: int, seed: int) -> pa.RecordBatch:
    """Rows with vectors of their own: equal ones would be ties."""
    return batch(shard, docs_of(shard, n), unit_vectors(n, seed), mark=f"{seed} ")


def index_of(folder: Path, kind: str = "ivf_flat", generation: int = 0) -> SegmentedIndex:
    return SegmentedIndex(corpus_uri(folder), kind, generation)


def segments_of(folder: Path) -> dict[str, set[int]]:
    """Fragments by segment of the newest version."""
    return {
        i["uuid"]: set(i["fragment_ids"])
        for i in open_dataset(corpus_uri(folder)).list_indices()
        if i["fields"] == ["vector"]
    }


def widest(kind: str) -> Search:
    """A search that looks at every partition, and at every whole vector that may matter."""
    return Search(kind, 100, None if kind == "ivf_flat" else 64)


def recall(table: ChunkTable, how: Search, k: int = 10) -> float:
    ids, vectors = vectors_of(table)
    queries = unit_vectors(40, 777)
    cosines = queries.astype(np.float64) @ vectors.astype(np.float64).T
    found = table.search(queries, k, how=how)
    assert not found.select("query", "chunk_id").is_duplicated().any()
    hits = 0
    for query in range(40):
        best = {ids[i] for i in np.argsort(-cosines[query])[:k]}
        mine = found.filter(pl.col("query") == query)
        hits += len(best & set(mine["chunk_id"]))
        for chunk_id, similarity in mine.select("chunk_id", "similarity").iter_rows():
            assert similarity == pytest.approx(cosines[query][ids.index(chunk_id)], abs=1e-6)
    return hits / (40 * k)


def assert_whole(folder: Path, kind: str = "ivf_flat") -> None:
    """A search for as many rows as there are finds each once, and nothing else.

    It reads the index alone: rows that it misses are not found.
    """
    table = open_table(store_in(folder))
    wanted = set(pl.concat(list(table.scan(["chunk_id"])))["chunk_id"])
    query: Any = table._table.search(unit_vectors(1, 5)[0], vector_column_name="vector")
    query = query.distance_type("cosine").limit(len(wanted) + 50).nprobes(1000).fast_search()
    found = query.select(["chunk_id", "_distance"]).to_arrow()["chunk_id"].to_pylist()
    assert len(found) == len(set(found)), "a row is found twice"
    assert set(found) == wanted
    assert index_of(folder, kind).unindexed_rows(table.version) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_segments_built_at_once_are_searched_as_one_index(tmp_path: Path, kind: str) -> None:
    table = filled(tmp_path, SIZES)
    with ThreadPoolExecutor(3) as pool:
        built = list(pool.map(index_of(tmp_path, kind).index_shard, SIZES))
    assert [each.rows_added for each in built] == list(SIZES.values())
    assert len({each.centroids.identity for each in built}) == 1
    assert segments_of(tmp_path) == {
        each.added: {number} for number, each in enumerate(sorted(built, key=fragment_of(tmp_path)))
    }
    table._table.checkout_latest()
    one_probe = Search(kind, 1)
    assert recall(table, one_probe) < 0.9, "one probe suffices: the case tests nothing"
    before = table.search(unit_vectors(20, 7), 8, how=one_probe)
    done = table.complete_index(kind)
    assert (done.number, done.rows_added) == (1 if kind == "ivf_flat" else 3, 0)
    assert table.search(unit_vectors(20, 7), 8, how=one_probe).equals(before), "other partitions"
    assert_whole(tmp_path, kind)
    assert recall(table, widest(kind)) >= 0.99


def fragment_of(folder: Path) -> Callable[[Any], int]:
    covered = segments_of(folder)
    return lambda built: min(covered[built.added])


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_shards_and_segments_changes_no_result(tmp_path: Path, kind: str) -> None:
    """Centroids and segments depend on the chunks alone."""
    found = []
    for number, order in enumerate(["abc", "cab", "bca"]):
        folder = tmp_path / str(number)
        table = new_table(folder)
        for shard in order:
            table.replace_shard(shard, [rows(shard, SIZES[shard], ord(shard))])
        for shard in reversed(order[1:]):
            index_of(folder, kind).index_shard(shard)
        table.complete_index(kind)
        result = table.search(unit_vectors(20, 7), 8, how=Search(kind, 4, 8))
        identity = load_or_train(corpus_uri(folder), 0, "cpu").identity
        found.append((identity, result.sort("query", "similarity", "chunk_id")))
    if kind == "ivf_rq":  # each segment is rotated at random
        assert len({identity for identity, _ in found}) == 1
    else:
        for identity, result in found[1:]:
            assert identity == found[0][0]
            assert result.equals(found[0][1])


def test_new_shards_get_segments_and_old_ones_stay(tmp_path: Path) -> None:
    table = filled(tmp_path, SIZES)
    table.complete_index("ivf_flat")
    (first,) = segments_of(tmp_path)
    table.replace_shard("d", [rows("d", 60, 9)])
    assert index_of(tmp_path).index_shard("d").rows_left == 60, "fewer than 4 × 30 partitions"
    done = table.complete_index("ivf_flat")
    assert (done.number, done.rows_added) == (2, 60)
    table.replace_shard("e", [rows("e", 70, 10)])
    done = table.complete_index("ivf_flat")
    assert (done.number, done.rows_added) == (2, 130), "the small segment was not joined"
    table.replace_shard("f", [rows("f", 150, 11)])
    done = index_of(tmp_path).index_shard("f")
    assert (done.number, done.rows_added) == (3, 150)
    assert index_of(tmp_path).index_shard("f").rows_added == 0, "it was indexed twice"
    assert table.complete_index("ivf_flat").rows_added == 0
    assert first in segments_of(tmp_path)
    assert_whole(tmp_path)
    assert recall(table, widest("ivf_flat")) == 1.0


def test_segments_are_merged_when_the_later_ones_weigh_as_much() -> None:
    """Neither a copy of the whole index for every new shard, nor ever more segments."""
    draw, sizes, copied = random.Random(3), [40_000], 0
    for _ in range(400):
        sizes.append(draw.randint(32, 400))
        if (number := _merged_segments(sizes)) > 1:
            merged = sum(sizes[-number:])
            sizes, copied = [*sizes[:-number], merged], copied + merged
        later = [sum(sizes[i + 1 :]) for i in range(len(sizes))]
        assert all(size > 2 * rest for size, rest in zip(sizes, later, strict=True))
    assert len(sizes) <= 8
    assert copied < 6 * sum(sizes)
    assert [_merged_segments(s) for s in ([], [5], [5, 5], [11, 5], [10, 5], [99, 3, 3, 1])] == [
        *(0, 1, 2, 1, 2, 3)
    ]


# Between the building of a segment and its commit

EVENTS: dict[str, Callable[[ChunkTable, Path], object]] = {
    "the shard is rewritten": lambda t, _: t.replace_shard("b", [rows("b", 200, 21)]),
    "another shard is rewritten": lambda t, _: t.replace_shard("a", [rows("a", 200, 22)]),
    "the first shard loses all rows": lambda t, _: t.replace_shard("a", []),
    "a shard is added": lambda t, _: t.replace_shard("n", [rows("n", 200, 23)]),
    "documents are deleted": lambda t, _: t.delete_documents("b", docs_of("b", 240)),
    "fragments are joined": lambda _, folder: compact(corpus_uri(folder)),
    "another process indexes the shard": lambda _, folder: index_of(folder).index_shard("b"),
    "another process indexes all": lambda _, folder: index_of(folder).complete(),
}


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("step", ["index_shard", "complete"])
def test_no_row_is_missing_doubled_or_stale_whatever_happens_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, event: str
) -> None:
    table = filled(tmp_path, SIZES)
    load_or_train(corpus_uri(tmp_path), 0, "cpu")
    commit, events = SegmentedIndex._commit, [EVENTS[event]]

    def interrupted(*args: Any) -> bool:
        if events:
            events.pop()(open_table(store_in(tmp_path)), tmp_path)
        return commit(*args)

    monkeypatch.setattr(SegmentedIndex, "_commit", interrupted)
    index = index_of(tmp_path)
    done = index.index_shard("b") if step == "index_shard" else index.complete()
    assert not events, "nothing was built"
    assert done.number == len(segments_of(tmp_path))
    index.complete()
    assert_whole(tmp_path)
    table._table.checkout_latest()
    assert recall(table, widest("ivf_flat")) == 1.0


@pytest.mark.parametrize("event", EVENTS)
def test_a_merge_keeps_every_row_whatever_happens_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, event: str
) -> None:
    table = filled(tmp_path, SIZES)
    for shard in SIZES:
        index_of(tmp_path).index_shard(shard)
    events = [EVENTS[event]]

    def interrupted(sizes: Any) -> int:
        if events:
            events.pop()(open_table(store_in(tmp_path)), tmp_path)
        return _merged_segments(sizes)

    monkeypatch.setattr(segments, "_merged_segments", interrupted)
    index_of(tmp_path).complete()
    assert not events, "nothing was merged"
    index_of(tmp_path).complete()
    assert len(segments_of(tmp_path)) <= 2
    assert_whole(tmp_path)
    table._table.checkout_latest()
    assert recall(table, widest("ivf_flat")) == 1.0


def test_a_shard_that_others_keep_changing_is_tried_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path, SIZES)
    monkeypatch.setattr(SegmentedIndex, "_commit", lambda *_: False)
    for step in (lambda index: index.index_shard("a"), lambda index: index.complete()):
        with pytest.raises(ShardConflictError, match="commit conflict: other processes") as caught:
            step(index_of(tmp_path))
        assert is_transient(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_any_sequence_of_steps_leaves_an_index_of_all_rows(tmp_path: Path, kind: str) -> None:
    """Shards rewritten, indexed and deleted from, tables compacted, in a random order."""
    draw, table = random.Random(KINDS.index(kind)), filled(tmp_path, SIZES)
    written: dict[str, int] = dict(SIZES)

    def rewrite(shard: str, turn: int) -> None:
        written[shard] = draw.randint(100, 300)
        table.replace_shard(shard, [rows(shard, written[shard], 1000 + turn)])

    def delete(shard: str, _: int) -> None:
        deleted = draw.sample(docs_of(shard, written[shard]), 40)
        table._table.checkout_latest()
        table.delete_documents(shard, deleted)

    steps: list[Callable[[str, int], object]] = [
        rewrite,
        delete,
        lambda shard, _: index_of(tmp_path, kind).index_shard(shard),
        lambda *_: compact(corpus_uri(tmp_path), NOW),
        lambda *_: index_of(tmp_path, kind).complete(),
    ]
    for turn in range(24):
        draw.choice(steps)(draw.choice("abcd" if turn else "abc"), turn)
        if "d" not in written:
            rewrite("d", turn)
        if turn % 6 == 5:
            index_of(tmp_path, kind).complete()
            assert_whole(tmp_path, kind)
    table._table.checkout_latest()
    assert recall(table, widest(kind)) >= 0.98


# What is kept and what is swept


def test_a_killed_build_leaves_files_that_are_swept(tmp_path: Path) -> None:
    table = filled(tmp_path, SIZES)
    table.complete_index("ivf_flat")
    table.tag("kept")
    table.replace_shard("d", [rows("d", 200, 24)])
    folder = Path(corpus_uri(tmp_path), "lancedb", "chunks.lance", "_indices")

    def files() -> set[str]:
        return {path.parent.name for path in folder.glob("*/*") if path.is_file()}

    before = files()
    index, dataset = index_of(tmp_path), open_dataset(corpus_uri(tmp_path))
    index._build(
        dataset, dataset.get_fragments()[-1:], load_or_train(corpus_uri(tmp_path), 0, "cpu")
    )
    (left,) = files() - before
    assert compact(corpus_uri(tmp_path)).files_swept == 0, "its process may be alive"
    assert left in files()
    done = compact(corpus_uri(tmp_path), NOW)
    assert done.files_swept == 2
    assert left not in files()
    assert before <= files()
    assert recall(open_table(store_in(tmp_path), "kept"), widest("ivf_flat")) == 1.0
    table.complete_index("ivf_flat")
    assert_whole(tmp_path)


def test_another_generation_or_type_replaces_the_index_and_keeps_the_tagged_one(
    tmp_path: Path,
) -> None:
    table = filled(tmp_path, SIZES)
    first = table.complete_index("ivf_flat")
    table.tag("first")
    table.replace_shard("d", [rows("d", 300, 24)])
    again = table.complete_index("ivf_flat", generation=1)
    assert (again.number, again.rows_added) == (1, 1200)
    assert (first.centroids.rows, again.centroids.rows) == (900, 1200)
    assert first.centroids.identity != again.centroids.identity
    other = table.complete_index("ivf_sq", generation=1)
    assert other.centroids.identity == again.centroids.identity
    names = {i["name"] for i in open_dataset(corpus_uri(tmp_path)).list_indices()}
    assert names == {"vector_ivf_sq_1"}
    assert recall(open_table(store_in(tmp_path), "first"), widest("ivf_flat")) == 1.0


def test_processes_that_train_at_once_use_the_same_centroids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table grows between them, so each has centroids of its own; one publishes."""
    from entropylong_assets.stages.embeddings import centroids

    table = filled(tmp_path, SIZES)
    train, go = centroids.train, threading.Barrier(2)

    def both(*args: Any) -> Any:
        trained = train(*args)
        go.wait(60)
        return trained._replace(rows=threading.get_ident())

    monkeypatch.setattr(centroids, "train", both)
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(load_or_train, corpus_uri(tmp_path), 0, "cpu") for _ in range(2)]
    one, other = (job.result() for job in jobs)
    assert (one.rows, one.identity) == (other.rows, other.identity)
    assert one.vectors_PE.shape == (30, 8)
    assert table.complete_index("ivf_flat").centroids.rows == one.rows


@pytest.mark.parametrize(
    "message",
    [
        "Dataset already exists: chunks",
        "Retryable commit conflict for version 2: This Overwrite transaction was preempted by "
        "concurrent transaction Overwrite at version 2. Please retry.",
    ],
)
def test_centroids_of_a_faster_process_are_used_however_lance_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    """Lance raises an OSError for both; the second was seen with three processes under load."""
    filled(tmp_path, SIZES)
    write = lance.write_dataset

    def preempted(*args: Any, **options: Any) -> None:
        write(*args, **options)  # as the other process does
        raise OSError(message)

    monkeypatch.setattr(lance, "write_dataset", preempted)
    assert load_or_train(corpus_uri(tmp_path), 0, "cpu").rows == 900
    message = "the disk is full"
    with pytest.raises(OSError, match="disk is full"):
        load_or_train(corpus_uri(tmp_path), 1, "cpu")


# What `embedding_index` records


def test_the_fall_of_recall_since_the_centroids_were_new_is_measured(tmp_path: Path) -> None:
    """New chunks in a corner of the space that no centroid lies in."""
    world = World(tmp_path, search="index", target_recall=0.9, recall_queries=200)
    world.embed("a", docs_of("a", 900), 1)
    first = world.index({"a": 0})
    assert (first.segments, first.rows_added, first.centroid_rows) == (1, 900, 900)
    assert (first.nprobes_when_new, first.recall_when_new) == (first.nprobes, first.recall)
    assert first.recall_unsteered == first.recall
    world.embed("b", docs_of("b", 400), 2)
    second = world.index({"a": 0, "b": 1})
    assert (second.segments, second.rows_added) == (2, 400)
    assert second.centroids == first.centroids
    assert (second.nprobes_when_new, second.recall_when_new) == (first.nprobes, first.recall)
    how = Search("ivf_flat", first.nprobes)
    assert second.recall >= 0.9
    table = open_table(store_in(tmp_path), "t")
    assert second.recall_unsteered == pytest.approx(recall(table, how, 5), abs=0.1)
