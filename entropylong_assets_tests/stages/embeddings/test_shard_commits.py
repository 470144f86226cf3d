"""Many writers of one LanceDB table. Oracle: the rows that each writer was given."""

from __future__ import annotations

import multiprocessing
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from entropylong_assets.orchestration.errors import is_transient
from entropylong_assets.stages.embeddings import compaction
from entropylong_assets.stages.embeddings.compaction import compact
from entropylong_assets.stages.embeddings.segments import SegmentedIndex
from entropylong_assets.stages.embeddings.shard_commits import (
    ShardCommit,
    ShardConflictError,
    open_dataset,
    shards_committed,
)
from entropylong_assets.stages.embeddings.table import ChunkTable, open_table
from entropylong_assets_tests.stages.embeddings.test_table import (
    World,
    batch,
    docs_of,
    everything,
    filled,
    new_table,
    store_in,
    unit_vectors,
)

NOW = timedelta(0)


def corpus_uri(folder: Path) -> str:
    return store_in(folder).corpus_uri


def rows(shard: str, n: int, mark: str = "") -> pa.RecordBatch:
    return batch(shard, docs_of(shard, n), unit_vectors(n, 1), mark=mark)


def prepared(folder: Path, shard: str, n: int, mark: str = "") -> ShardCommit:
    """A writer whose rows are written and not committed."""
    change = ShardCommit(corpus_uri(folder), shard)
    assert change.write([rows(shard, n, mark)]) == n
    return change


def marks(folder: Path) -> dict[str, set[str]]:
    """Of each shard in the newest version, the marks of its rows; no row is there twice."""
    table = open_table(store_in(folder))
    columns = ["chunk_id", "doc_id", "shard", "text"]
    stored = pl.concat([pl.DataFrame(), *table.scan(columns)], how="diagonal")
    if stored.is_empty():
        return {}
    assert not stored.select("chunk_id", "shard").is_duplicated().any()
    return {
        shard: {text.removesuffix(chunk) for text, chunk in part.select("text", "chunk_id").rows()}
        for (shard,), part in stored.group_by("shard")
    }


def data_files(folder: Path) -> set[str]:
    return {p.name for p in Path(corpus_uri(folder)).glob("lancedb/chunks.lance/data/*.lance")}


STARTS: dict[str, Callable[[Path], object]] = {
    "empty table": new_table,
    "new shard": lambda folder: filled(folder, {"z": 4}),
    "shard that exists": lambda folder: filled(folder, {"z": 4, "a": 3}),
    "first shard": lambda folder: filled(folder, {"a": 3, "z": 4}),
    "fragment of several shards": lambda folder: (
        filled(folder, {"z": 4, "y": 2, "a": 3, "x": 2}),
        compact(corpus_uri(folder)),
    ),
}


@pytest.mark.parametrize("start", STARTS)
def test_two_writers_of_one_shard_leave_the_later_one_s_rows(tmp_path: Path, start: str) -> None:
    """Both read the table before either commits: the shard would hold the rows of both."""
    STARTS[start](tmp_path)
    others = open_table(store_in(tmp_path)).rows_by_shard().keys() - {"a"}
    first, second = prepared(tmp_path, "a", 6, "one "), prepared(tmp_path, "a", 5, "two ")
    first.commit()
    assert marks(tmp_path)["a"] == {"one "}
    second.commit()
    assert marks(tmp_path) == {"a": {"two "}, **{shard: {""} for shard in others}}
    assert open_table(store_in(tmp_path)).rows_by_shard()["a"] == 5


@pytest.mark.parametrize("start", STARTS)
def test_a_rewrite_beside_a_new_shard_keeps_both(tmp_path: Path, start: str) -> None:
    STARTS[start](tmp_path)
    rewrite, new = prepared(tmp_path, "a", 6, "one "), prepared(tmp_path, "new", 5)
    new.commit()
    rewrite.commit()
    table = open_table(store_in(tmp_path))
    assert {"a": 6, "new": 5}.items() <= table.rows_by_shard().items()
    assert marks(tmp_path)["a"] == {"one "}
    assert shards_committed(open_dataset(corpus_uri(tmp_path)), 1) >= {"a", "new"}


def test_a_shard_can_lose_all_rows_and_the_table_too(tmp_path: Path) -> None:
    """A table that became empty has no fragment that commits could conflict over."""
    table = filled(tmp_path, {"a": 3})
    table.index_for_lookup()
    table.tag("before")
    table.replace_shard("a", [])
    assert table.rows_by_shard() == {}
    first, second = prepared(tmp_path, "b", 4), prepared(tmp_path, "c", 5)
    first.commit()
    second.commit()
    latest = open_table(store_in(tmp_path))
    assert latest.rows_by_shard() == {"b": 4, "c": 5}
    wanted = ["b1-00000", "c1-00000"]
    assert latest.fetch(wanted, ["chunk_id"])["chunk_id"].to_list() == wanted
    assert open_table(store_in(tmp_path), "before").rows_by_shard() == {"a": 3}


@pytest.mark.parametrize("start", ["empty table", "fragment of several shards"])
def test_a_writer_killed_before_its_commit_leaves_files_that_are_swept(
    tmp_path: Path, start: str
) -> None:
    STARTS[start](tmp_path)
    table = open_table(store_in(tmp_path))
    before, files = everything_or_none(table), data_files(tmp_path)
    prepared(tmp_path, "a", 6, "killed ")
    (left,) = data_files(tmp_path) - files
    assert everything_or_none(open_table(store_in(tmp_path))) == before
    assert compact(corpus_uri(tmp_path)).files_swept == 0, "its writer may be alive"
    assert left in data_files(tmp_path)
    done = compact(corpus_uri(tmp_path), NOW)
    assert done.bytes_removed > 0
    assert left not in data_files(tmp_path)
    assert everything_or_none(open_table(store_in(tmp_path))) == before
    open_table(store_in(tmp_path)).replace_shard("a", [rows("a", 2, "again ")])
    assert marks(tmp_path)["a"] == {"again "}


def everything_or_none(table: ChunkTable) -> Any:
    return everything(table) if table.rows_by_shard() else None


def test_a_fault_of_the_embedder_leaves_the_table_and_no_file(tmp_path: Path) -> None:
    table = filled(tmp_path, {"a": 6})
    before, files = everything(table), data_files(tmp_path)

    def broken() -> Iterator[pa.RecordBatch]:
        yield rows("a", 3)
        raise ValueError("the embedder broke")

    with pytest.raises(ValueError, match=r"\Athe embedder broke\Z"):
        table.replace_shard("a", broken())
    assert everything(open_table(store_in(tmp_path))) == before
    assert data_files(tmp_path) == files


def test_rows_added_to_a_shard_are_refused_if_it_was_rewritten_since(tmp_path: Path) -> None:
    """Documents that come back would be there twice: the rewritten shard holds them too."""
    table = filled(tmp_path, {"z": 2, "a": 3})
    new = batch("a", ["back"], unit_vectors(1, 4))
    table.extend_shard("a", [new])
    assert table.rows_by_shard() == {"z": 2, "a": 4}
    open_table(store_in(tmp_path)).replace_shard("z", [rows("z", 5)])  # another shard: no matter
    table.extend_shard("a", [batch("a", ["more"], unit_vectors(1, 5))])
    open_table(store_in(tmp_path)).replace_shard("a", [rows("a", 6)])
    with pytest.raises(ShardConflictError, match="commit conflict: shard a: another") as caught:
        table.extend_shard("a", [new])
    assert is_transient(caught.value)
    assert open_table(store_in(tmp_path)).rows_by_shard() == {"z": 5, "a": 6}


def test_a_commit_whose_answer_was_lost_is_not_made_twice(tmp_path: Path) -> None:
    """The store puts the manifest and answers with an error: the next attempt finds the rows."""
    filled(tmp_path, {"z": 2})
    change = prepared(tmp_path, "a", 3)
    version = change.commit()
    assert change.commit() == version
    assert open_table(store_in(tmp_path)).rows_by_shard() == {"z": 2, "a": 3}


def test_sixteen_writers_at_once_lose_and_double_nothing(tmp_path: Path) -> None:
    """Eleven new shards and five that write the same one, from an empty table."""
    new_table(tmp_path)
    shards = [f"s{i}" for i in range(11)] + ["same"] * 5
    go = threading.Barrier(len(shards))

    def write(number: int) -> None:
        change = prepared(tmp_path, shards[number], 20 + number, f"{number} ")
        go.wait(120)
        change.commit()

    with ThreadPoolExecutor(len(shards)) as pool:
        list(pool.map(write, range(len(shards))))
    found = marks(tmp_path)
    assert {s: m for s, m in found.items() if s != "same"} == {
        f"s{i}": {f"{i} "} for i in range(11)
    }
    ((mark,),) = [found["same"]]
    sizes = open_table(store_in(tmp_path)).rows_by_shard()
    assert sizes == {f"s{i}": 20 + i for i in range(11)} | {"same": 20 + int(mark)}


# Compaction


def test_compaction_joins_fragments_and_changes_no_row(tmp_path: Path) -> None:
    table = filled(tmp_path, dict.fromkeys("abcdef", 5))
    table.index_for_lookup()
    table.tag("index-1")
    table.delete_documents("c", ["c0"])
    table.replace_shard("d", [rows("d", 3, "new ")])
    before = everything(table)
    tagged = everything(open_table(store_in(tmp_path), "index-1"))
    done = compact(corpus_uri(tmp_path), NOW)
    assert (done.fragments_before, done.fragments_after, done.fragments_left) == (6, 2, 0)
    assert done.versions_removed > 0
    latest = open_table(store_in(tmp_path))
    assert everything(latest) == before
    assert latest.rows_by_shard() == {"a": 5, "b": 5, "c": 4, "d": 3, "e": 5, "f": 5}
    for chunk_id, (_, text) in before.items():
        assert latest.fetch([chunk_id], ["chunk_id", "text"])["text"].to_list() == [text]
    assert everything(open_table(store_in(tmp_path), "index-1")) == tagged
    # A shard in the middle of a fragment is rewritten, and nothing else.
    latest.replace_shard("e", [rows("e", 2, "last ")])
    assert marks(tmp_path) == {**{s: {""} for s in "abcf"}, "d": {"new "}, "e": {"last "}}
    assert latest.fetch(["e0-00000", "f0-00000"], ["chunk_id", "text"])["text"].to_list() == [
        "last e0-00000",
        "f0-00000",
    ]


@pytest.mark.parametrize(("rewritten", "left"), [("e", 5), ("new", 0)])
def test_compaction_beside_a_writer_leaves_what_the_writer_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rewritten: str, left: int
) -> None:
    """The writer never waits, and never loses; a shard that is new conflicts with nothing."""
    table = filled(tmp_path, dict.fromkeys("abcdef", 5))
    monkeypatch.setattr(compaction, "_commit", _after(compaction._commit, lambda: (
        table.replace_shard(rewritten, [rows(rewritten, 4, "new ")])
    )))  # fmt: skip
    done = compact(corpus_uri(tmp_path))
    assert done.fragments_left == left
    assert marks(tmp_path) == {s: {""} for s in "abcdef"} | {rewritten: {"new "}}


def test_the_shards_written_beside_a_compaction_of_indexed_fragments_are_known(
    tmp_path: Path,
) -> None:
    """Lance can't read such a commit: the second index of every corpus failed with a TypeError."""
    table = filled(tmp_path, dict.fromkeys("abcd", 5))
    table.index_for_lookup()
    version = open_dataset(corpus_uri(tmp_path)).version
    table.replace_shard("e", [rows("e", 4)])
    done = compact(corpus_uri(tmp_path))
    assert done.fragments_after < done.fragments_before
    table.replace_shard("b", [rows("b", 2, "new ")])
    assert shards_committed(open_dataset(corpus_uri(tmp_path)), version) == {"e", "b"}


def _after(call: Callable[..., Any], first: Callable[[], object]) -> Callable[..., Any]:
    once = [first]

    def both(*args: Any) -> Any:
        if once:
            once.pop()()
        return call(*args)

    return both


# The index beside writers


class _Interrupted:
    """A table on which another process writes a shard while the lookup indexes are built."""

    def __init__(self, table: Any, shard: str, n: int) -> None:
        self._table, self._shard, self._n = table, shard, n

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)

    def index_for_lookup(self) -> None:
        change = ShardCommit(self._table._corpus_uri, self._shard)
        change.write([rows(self._shard, self._n, "meanwhile ")])
        change.commit()
        self._table.index_for_lookup()


def test_an_index_over_a_shard_that_is_rewritten_meanwhile_is_tried_again(tmp_path: Path) -> None:
    """As many rows as before: a count does not tell that they are others."""
    world = World(tmp_path)
    world.embed("a", docs_of("a", 4), 1)
    world.embed("b", docs_of("b", 3), 2)
    table = world.table
    world.table = _Interrupted(table, "b", 3)  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="commit conflict: shard b was written") as caught:
        world.index({"a": 0, "b": 1})
    assert is_transient(caught.value)
    world.table = table
    assert world.index({"a": 0, "b": 1}).n_rows == 7


def test_a_shard_that_is_added_while_an_index_is_made_is_not_searched(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.embed("a", docs_of("a", 4), 1)
    world.table = _Interrupted(world.table, "new", 6)  # type: ignore[assignment]
    summary = world.index({"a": 0})
    assert (summary.n_rows, summary.excluded_shards) == (4, ["new"])
    table = open_table(store_in(tmp_path), "t")
    found = table.search(unit_vectors(2, 9), 20, summary.excluded_shards)
    assert set(found["shard"]) == {"a"}
    sample = table.chunk_sample(summary.excluded_shards).chunks["chunk_id"]
    assert set(sample) == {f"{doc}-00000" for doc in docs_of("a", 4)}


def test_a_shard_that_is_added_while_vectors_are_indexed_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows are outside the index: that was taken for a broken index."""
    table = filled(tmp_path, {"a": 300})
    commit = SegmentedIndex._commit
    monkeypatch.setattr(
        SegmentedIndex,
        "_commit",
        lambda *args: prepared(tmp_path, "new", 6).commit() and commit(*args),
    )
    assert table.complete_index("ivf_flat").rows_added == 300
    assert SegmentedIndex(corpus_uri(tmp_path), "ivf_flat").unindexed_rows(table.version) == 6
    assert table.rows_by_shard() == {"a": 300, "new": 6}


# Long: many processes

_SHARDS = [f"s{i}" for i in range(5)]


def _rewrite(folder: Path, number: int, times: int) -> None:
    """200 rows per version of a shard, all with one mark; the table is also compacted."""
    draw = random.Random(number)
    for turn in range(times):
        shard = draw.choice(_SHARDS)
        change = ShardCommit(corpus_uri(folder), shard)
        n = draw.randint(150, 250)
        half = n // 2
        whole = rows(shard, n, f"{n}:{number}-{turn} ")
        change.write([whole.slice(0, half), whole.slice(half)])
        change.commit()
        if number == 0 and turn % 5 == 4:
            compact(corpus_uri(folder))


@pytest.mark.long
def test_200_rewrites_by_8_processes_show_no_half_shard(tmp_path: Path) -> None:
    """A reader looks at the newest version all the time. A mark starts with its number of rows."""
    new_table(tmp_path)
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_rewrite, args=(tmp_path, i, 25)) for i in range(8)]
    for writer in writers:
        writer.start()
    looks, seen, began = 0, set(), time.monotonic()
    while any(writer.is_alive() for writer in writers):
        assert time.monotonic() - began < 1200
        stored = pl.from_arrow(open_dataset(corpus_uri(tmp_path)).to_table(["shard", "text"]))
        assert isinstance(stored, pl.DataFrame)
        for (shard,), part in stored.group_by("shard"):
            (mark,) = {text.split(" ")[0] for text in part["text"]}
            assert mark.split(":")[0] == str(len(part)), "half a shard, or one and a half"
            seen.add((shard, mark))
        looks += 1
    assert [writer.exitcode for writer in writers] == [0] * 8
    dataset = open_dataset(corpus_uri(tmp_path))
    made = [dataset.read_transaction(v) for v in range(1, dataset.version + 1)]
    commits = [t for t in made if t and "shard" in (t.transaction_properties or {})]
    print(f"{len(commits)} commits, {looks} looks, {len(seen)} shards seen, "
          f"{time.monotonic() - began:.0f} s")  # fmt: skip
    assert len(commits) == 200
    assert looks > 20
    assert len(seen) > 20
